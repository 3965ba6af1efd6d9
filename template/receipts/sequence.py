"""Compare each round of a signer with the rounds before it."""

from collections.abc import Iterator

from template.constants import DAY_BLOCKS
from template.receipts.findings import Finding, Kind
from template.receipts.history import CheckedRound
from template.receipts.round_file import RoundHeader
from template.rules.entries import MISSING
from template.rules.evaluations import first_seed_block, seed_base
from template.rules.ledger import live_credits


class SequenceCheck:
    """Checks of one signer's rounds, in order."""

    def __init__(self) -> None:
        self._season: tuple[str, ...] | None = None
        self._missing: dict[str, int] = {}
        self._read: tuple[object, set[tuple[str, str]]] = (None, set())
        self._seed_blocks: dict[tuple[object, ...], int] = {}

    def check(self, header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
        """Check credits, the queue, and the blocks of seeds."""
        yield from self._check_credits(header, checked)
        yield from self._check_queue(header)
        yield from self._check_seed_blocks(header)

    def _check_seed_blocks(self, header: RoundHeader) -> Iterator[Finding]:
        """Check that all seeds of a dataset count from one block.

        Also after its file was missing. A confirmed dataset's seeds can count from its rank block instead.
        """
        registrations = header.registrations
        ranks = {(line.hotkey, line.digest): line.rank_block for line in header.ledger}
        for line in header.evaluations:
            if line.seed_block is None:
                continue
            block = seed_base(line.seed_block, line.number, header.incentives.blocks_per_epoch)
            rank_block = ranks.get((line.hotkey, line.digest))
            if rank_block is not None and block == first_seed_block(rank_block, header.incentives):
                continue
            key = (header.season, line.hotkey, line.digest, registrations.get(line.hotkey))
            first = self._seed_blocks.setdefault(key, block)
            if block != first:
                text = f"evaluation {line.number} has a seed that counts from block {block}, others from {first}"
                yield Finding(Kind.SEED, f"{line.hotkey}: {text}")

    def _check_queue(self, header: RoundHeader) -> Iterator[Finding]:
        """Check that the queue has no dataset that the last round had read.

        Evaluations of a dataset that comes late are in no plan, so a queue could hide any of them.
        """
        entries = {line.hotkey: line.entry for line in header.entries}
        last, read = self._read
        if last == (header.start_block - header.incentives.blocks_per_epoch, header.competition) and not header.is_past:
            for hotkey in header.queue:
                if (hotkey, entries.get(hotkey)) in read:
                    yield Finding(Kind.PLAN, f"{hotkey}: in the queue, and its dataset was read in the round before")
        read = {(line.hotkey, line.entry) for line in header.table if line.digest is not None}
        self._read = ((header.start_block, header.competition), read)

    def _check_credits(self, header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
        """Check that a credit is paid while the hotkey's next dataset waits.

        A dataset that was missing for more than a day is excepted: its absence is in no file.
        """
        live = live_credits(header.start_block, header.ledger, header.registrations, header.incentives)
        readable = checked.readable
        since = header.start_block - DAY_BLOCKS
        for line in header.table:
            if line.reason in MISSING:
                self._missing[line.hotkey] = header.start_block
            is_unpaid = line.reason is None and line.digest is None and line.credit == 0.0 and line.hotkey in live
            was_missing = line.hotkey in self._missing and self._missing[line.hotkey] >= since - DAY_BLOCKS
            if is_unpaid and not was_missing and readable.get(line.hotkey, -1) >= max(since, 0):
                text = f"no credit is paid, and a dataset of it was readable at block {readable[line.hotkey]}"
                yield Finding(Kind.INCONSISTENT, f"{line.hotkey}: {text}")

    def notes(self, header: RoundHeader) -> list[str]:
        """Return a note if all losses count anew from this round on."""
        if header.is_past:
            return []
        before, self._season = self._season, header.season
        if before in (None, header.season):
            return []
        return [f"a new season: losses are of {header.model!r} from here on. Was there a release or another machine?"]
