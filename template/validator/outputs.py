"""Write receipts and round files, which no loss and no weight may wait for.

Every file is recorded in the state first. One that its folder refuses stays there, and is written once the folder takes
files again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from loguru import logger

from template.errors import HostError
from template.files import find_write_problem
from template.store.store import Store
from template.validator.config import ValidatorConfig

# Time between two warnings of one folder.
_WARN_EVERY_S = 3600.0


class Outputs:
    """The optional folders of one validator.

    problems: why a folder takes no files, by flag.
    """

    def __init__(self, config: ValidatorConfig, store: Store, now: Callable[[], float]) -> None:
        folders = {"--receipt_dir": config.receipt_dir, "--round_dir": config.round_dir}
        self.problems: dict[str, str] = {}
        self._folders = {flag: folder for flag, folder in folders.items() if folder is not None}
        self._store = store
        self._now = now
        self._warned_at: dict[str, float] = {}

    def check(self) -> None:
        """Try every folder, then write what waits."""
        for flag, folder in self._folders.items():
            self._set_problem(flag, find_write_problem(folder))
        self.write()

    def write(self) -> Mapping[str, str]:
        """Write the recorded files; return the reason of each folder that refuses."""
        refused: dict[str, str] = {}
        for flag, name in self._store.unwritten_names():
            folder = self._folders.get(flag)
            if folder is not None and flag not in refused and (problem := self._write(flag, name, folder)) is not None:
                refused[flag] = problem
        return refused

    def waiting(self) -> list[str]:
        """Describe each folder that takes no files, and how many wait for it."""
        flags = [flag for flag, _ in self._store.unwritten_names()]
        return [
            f"{flag} {self._folders[flag]} takes no files: {problem}; {flags.count(flag)} wait in the state"
            for flag, problem in self.problems.items()
        ]

    def _write(self, flag: str, name: str, folder: Path) -> str | None:
        try:
            self._store.unwritten_file(flag, name).write(folder)
        except HostError as error:
            problem = find_write_problem(folder) or str(error)
            self._set_problem(flag, problem)
            return problem
        self._store.delete_output(flag, name)
        self._set_problem(flag, None)
        return None

    def _set_problem(self, flag: str, problem: str | None) -> None:
        if problem is None:
            if self.problems.pop(flag, None) is not None:
                logger.info("{} takes files again", flag)
                self._warned_at.pop(flag, None)
            return
        self.problems[flag] = problem
        # After the clock was set back, the last warning lies in the future and does not count.
        if not 0.0 <= self._now() - self._warned_at.get(flag, float("-inf")) < _WARN_EVERY_S:
            self._warned_at[flag] = self._now()
            logger.warning("{} {} takes no files, which wait in the state: {}", flag, self._folders[flag], problem)
