"""The histories that a site shows, with numbers for the names in them. Pure."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from template.competition import CommitmentRecord
from template.constants import HOTKEY_PATTERN
from template.errors import SubmissionError
from template.receipts.round_file import RoundHeader
from template.receipts.sources import is_hotkey
from template.site.extract import Evaluation, Extract, Row


@dataclass(frozen=True)
class History:
    """The rounds of one validator on one subnet, oldest first.

    newest: the header of the last one. repo: where everybody finds the files, None for local ones.
    """

    rounds: Sequence[Extract]
    newest: RoundHeader
    repo: str | None

    @property
    def last(self) -> Extract:
        return self.rounds[-1]

    @property
    def signer(self) -> str:
        return self.last.signer or "unsigned"

    @cached_property
    def since(self) -> Mapping[str, int]:
        """The first block of the latest unbroken pay, by hotkey that is paid now."""
        since: dict[str, int] = {}
        for extract in self.rounds:
            paid = [row.hotkey for row in extract.rows if row.weight > 0.0]
            since = {hotkey: since.get(hotkey, extract.start_block) for hotkey in paid}
        return since

    @cached_property
    def by_hotkey(self) -> Mapping[str, Sequence[tuple[int, Row]]]:
        """The number of the round and the row, by hotkey."""
        found: dict[str, list[tuple[int, Row]]] = {}
        for index, extract in enumerate(self.rounds):
            for row in extract.rows:
                found.setdefault(row.hotkey, []).append((index, row))
        return found

    @cached_property
    def evaluations(self) -> Mapping[str, Sequence[tuple[int, Evaluation]]]:
        """The number of the round and the evaluation, by hotkey."""
        found: dict[str, list[tuple[int, Evaluation]]] = {}
        for index, extract in enumerate(self.rounds):
            for run in extract.evaluations:
                found.setdefault(run.hotkey, []).append((index, run))
        return found

    def changes(self, hotkey: str) -> list[tuple[Extract, Row]]:
        """Return the rounds in which the dataset or the verdict of a hotkey became another, newest first."""
        changes: list[tuple[Extract, Row]] = []
        last: tuple[str, ...] = ()
        for index, row in self.by_hotkey.get(hotkey, ()):
            state = (row.entry, row.verdict)
            if state != last:
                changes.append((self.rounds[index], row))
                last = state
        return changes[::-1]

    def source(self, extract: Extract) -> str:
        """Return a round's file as a command takes it."""
        return extract.name if self.repo is None else f"{self.repo}/{extract.name}"


class Names:
    """Every hotkey and dataset of the histories, by number, and the names of their pages."""

    def __init__(self, histories: Iterable[History], hub_url: str) -> None:
        rows = [row for history in histories for extract in history.rounds for row in extract.rows]
        self._hub_url = hub_url
        self.hotkeys = {hotkey: index for index, hotkey in enumerate(dict.fromkeys(row.hotkey for row in rows))}
        self.datasets = {entry: index for index, entry in enumerate(dict.fromkeys(row.entry for row in rows))}
        self.verdicts = {code: index for index, code in enumerate(dict.fromkeys(row.verdict for row in rows))}

    def linked(self, text: str) -> list[tuple[str, bool]]:
        """Split a text at the hotkeys that have a page; tell for each part whether it is one."""
        parts = re.split(f"({HOTKEY_PATTERN})", text)
        return [(part, index % 2 == 1 and part in self.hotkeys) for index, part in enumerate(parts)]

    def dataset(self, entry: str) -> tuple[str, str | None]:
        """Return a short text for a commitment, and its address on the Hub if it has one."""
        try:
            record = CommitmentRecord.parse(entry)
        except SubmissionError:
            return entry, None
        url = f"{self._hub_url}/datasets/{record.namespace}"
        if not record.is_content_addressed:
            url = f"{url}/tree/{record.commit}"
        return f"{record.namespace} @{record.commit[:8]}", url


def file_name(hotkey: str) -> str:
    """Return a name for the files of a hotkey: strangers choose the text in a round file."""
    return hotkey if is_hotkey(hotkey) else f"x{hashlib.sha256(hotkey.encode()).hexdigest()[:24]}"


def round_name(extract: Extract) -> str:
    """Return a name for the files of a round."""
    return f"{extract.netuid}-{extract.start_block}-{file_name(extract.signer or '')[:12]}"
