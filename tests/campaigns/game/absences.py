"""The files that are looked up, and the rounds in which they are missing.

The simulated validator follows `template.validator.availability`.
"""

from collections.abc import Container, Iterable
from dataclasses import replace

from template.constants import DAY_BLOCKS
from template.records import Stand, SubmissionKey


class Absences:
    """Files that were missing at their last lookup. period: blocks of a round."""

    def __init__(self, period: int) -> None:
        self._period = period
        # First block and number of the rounds without the file.
        self._rounds: dict[SubmissionKey, tuple[int, int]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._rounds

    @property
    def long(self) -> set[SubmissionKey]:
        """The files that are missing for more than a day of rounds."""
        return {key for key, (_, rounds) in self._rounds.items() if rounds * self._period > DAY_BLOCKS}

    def update(
        self,
        keys: Iterable[SubmissionKey],
        hidden: Container[SubmissionKey],
        block: int,
        stands: dict[str, dict[int, Stand]],
    ) -> None:
        """Look for files in the round of an aligned block.

        The newest stand of a file that is missing for long ends with the file.
        """
        keys = list(keys)
        for key in keys:
            if key in hidden:
                first_block, rounds = self._rounds.get(key, (block, 0))
                self._rounds[key] = (first_block, rounds + 1)
            else:
                self._rounds.pop(key, None)
        for key in self.long.intersection(keys):
            own = stands[key.hotkey]
            stand = own[max(own)]
            if stand.key == key:
                last_block = max(stand.first_block, min(stand.last_block, self._rounds[key][0] - self._period))
                own[stand.first_block] = replace(stand, last_block=last_block)
