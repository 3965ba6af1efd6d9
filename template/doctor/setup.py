"""The neuron that is checked: its command line, as far as all checks need it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from template.arguments import Check as ArgumentCheck
from template.arguments import find_faults
from template.config import load_competition
from template.doctor.findings import Finding, from_error, passed
from template.hub.datasets import find_eval_set


class Role(StrEnum):
    """The program that is checked."""

    VALIDATOR = "validator"
    MINER = "miner"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A neuron's command line.

    state_dir: its --state_dir or --work_dir. eval_data_dir: None for the miner's, which is below its --work_dir.
    cache_dir: of models, None for the Hub client's own. is_offline: works without wallet and weights. settings: checks
    of the flags.
    """

    args: argparse.Namespace = field(repr=False)
    role: Role
    state_dir: Path
    eval_data_dir: Path | None = None
    cache_dir: Path | None = None
    is_offline: bool = False
    sets_weights: bool = False
    settings: Sequence[ArgumentCheck] = ()

    @property
    def devices(self) -> list[str]:
        """The devices that --device names."""
        return [name.strip() for name in (self.args.device or "").split(",") if name.strip()]

    @property
    def model_path(self) -> Path | None:
        """The folder of --model_path."""
        return self.args.model_path.resolve() if self.args.model_path else None

    def eval_folder(self) -> Path:
        """Return the folder of the evaluation set. Raises: ConfigError."""
        return self.eval_data_dir or self.state_dir / load_competition(self.args.competition).digest[:12] / "eval_data"

    def eval_file(self) -> Path | None:
        """Return the downloaded evaluation set, None where it is not on this machine. Raises: ConfigError."""
        found = find_eval_set(load_competition(self.args.competition), self.eval_folder(), self.cache_dir)
        return None if found is None else found.path


def check_settings(setup: Setup) -> list[Finding]:
    """Check the flags and the files that they name."""
    problems = [from_error("settings", error) for error in find_faults(setup.args, setup.settings)]
    return problems or [passed("settings", "flags and the files that they name are valid")]
