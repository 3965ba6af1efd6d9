"""What every test stands on: no test reads or writes the user's home, or reaches beyond this machine.

The environment is set here, before any client is imported: they all read theirs at import.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from score_fixtures import Bench

# Removed when the process ends.
_HOME = tempfile.TemporaryDirectory(prefix="tests-home-")

os.environ.update(
    {
        "HF_HOME": f"{_HOME.name}/huggingface",
        # A closed port: what forgets to name a local hub is refused at once.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "BTCLI_TOKEN_SYMBOLS_CACHE": f"{_HOME.name}/token_symbols.json",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        # Waiting threads sleep rather than spin: on a busy machine, small products are several times faster so.
        "OMP_WAIT_POLICY": "passive",
    }
)
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny random Qwen2; not to be written to."""
    from template.localnet.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bench":
    """The tiny model beside a small dataset and evaluation set, ready to be scored; not to be written to."""
    from score_fixtures import Bench, make_rows, write_rows

    folder = tmp_path_factory.mktemp("bench")
    return Bench(
        model_path=tiny_model,
        data_dir=write_rows(folder / "data", make_rows(13, seed=1)),
        eval_data_dir=write_rows(folder / "eval_data", make_rows(9, seed=2)),
    )
