"""Where scores run. The one call of `run_lora` that validator and offline script share stands here.

A score loads torch; everything else of the validator does not, so the import is made when the first score is.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from template.competition import Competition
from template.records import Progress, TrainResult
from template.settings import TrainingArgs

if TYPE_CHECKING:
    from template.train import RunOptions


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """The competition and the machine's choices: all that a score needs beyond the dataset and the seed.

    model_path: a local folder with the model's weights, None for the Hub. device, dtype: None for the best here.
    """

    competition: Competition
    training_args: TrainingArgs
    eval_data_dir: Path
    cache_dir: Path | None = None
    model_path: Path | None = None
    device: str | None = None
    dtype: str | None = None

    def score(
        self, data_dir: Path, lucky_num: int, on_progress: Callable[[Progress], None] | None = None
    ) -> TrainResult:
        """The score of `data_dir/data.jsonl`. Raises: as `template.train.run_lora`."""
        from template.train import run_lora

        return run_lora(
            lucky_num,
            self.competition.bench,
            self.competition.rows,
            cache_dir=self.cache_dir,
            data_dir=data_dir,
            eval_data_dir=self.eval_data_dir,
            options=self._options(on_progress),
        )

    def load(self) -> str:
        """Loads the model and names it: Hub commit or folder digest, kind of device and dtype.

        Losses under different names are not compared.

        Raises: as `template.train.run_lora` does for the model.
        """
        from template.train import identify_model

        held = identify_model(self._options(None), self.cache_dir)
        dtype = str(held.dtype).removeprefix("torch.")
        return f"{held.source.model_id}@{held.source.revision or held.source.digest} {held.device.type} {dtype}"

    def _options(self, on_progress: Callable[[Progress], None] | None) -> "RunOptions":
        from template.train import RunOptions

        chosen = RunOptions(
            training_args=self.training_args, model_path=self.model_path, device=self.device, dtype=self.dtype
        )
        return chosen if on_progress is None else dataclasses.replace(chosen, on_progress=on_progress)
