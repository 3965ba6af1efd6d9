"""Check one signer's round files against each other, in order.

Pure. Losses, ranks and weights of a round follow from the rounds before it. A loss that rests on no file proves
nothing, so a missing file is a finding too.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from template.constants import DAY_BLOCKS
from template.errors import Reason
from template.receipts.findings import Finding, Kind
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundHeader, WeightsLine
from template.receipts.verify import SHARE_TOLERANCE
from template.records import ContentKey, Dataset, LedgerLine, Rank, Stand, SubmissionKey
from template.rules.entries import MISSING
from template.rules.evaluations import first_seed_block, seed_base
from template.rules.ledger import Content, Estimate, LedgerRow, estimate_loss, is_hopeless
from template.rules.stands import Version, extend_stands, find_versions


@dataclass(frozen=True)
class ClaimedRank:
    """A rank from before the first file, which only the chain can confirm.

    commit_block: None for a block that only seeds rest on.
    """

    key: ContentKey
    rank_block: int
    commit_block: int | None


@dataclass
class Season:
    """The evaluations of one competition, model and source of seeds up to a round.

    ledger: confirmed datasets. seed_blocks: block from which the later seeds of each count. planned: start block and
    evaluations of each hotkey, by round.
    """

    losses: dict[ContentKey, dict[int, float]] = field(default_factory=dict)
    seeds: dict[tuple[ContentKey, int], int] = field(default_factory=dict)
    ledger: dict[ContentKey, LedgerLine] = field(default_factory=dict)
    seed_blocks: dict[ContentKey, int] = field(default_factory=dict)
    planned: list[tuple[int, Counter[str]]] = field(default_factory=list)

    def first_losses(self, key: ContentKey, runs: int) -> list[float]:
        """Return the losses of a dataset's first evaluations, as far as files have them."""
        return [loss for number, loss in sorted(self.losses.get(key, {}).items()) if 0 < number <= runs]


@dataclass
class CheckedRound:
    """One round beside the earlier ones.

    first_block: start of the first file. newest: each hotkey's newest stand before this round. earlier: losses of each
    dataset in earlier rounds, by number. versions: the newest version of each dataset that stands. refused_before:
    hotkeys with a duplicate in the round before. confirmed_before: datasets in the ledger of an earlier round. burns:
    block and hotkey of weights that only the subnet's owner may get.
    """

    findings: list[Finding]
    season: Season
    first_block: int
    newest: Mapping[str, Stand]
    earlier: Mapping[ContentKey, Mapping[int, float]]
    versions: Mapping[ContentKey, Version]
    refused_before: Set[str]
    confirmed_before: Set[ContentKey]
    claimed_ranks: list[ClaimedRank] = field(default_factory=list)
    burns: list[tuple[int, str]] = field(default_factory=list)

    @property
    def readable(self) -> dict[str, int]:
        """The last block at which each hotkey had a readable dataset."""
        blocks: dict[str, int] = {}
        for key, version in self.versions.items():
            blocks[key.hotkey] = max(version.last_block, blocks.get(key.hotkey, 0))
        return blocks

    def is_confirmed(self, key: ContentKey, evaluations: int) -> bool:
        """Check whether a dataset was confirmed before this round."""
        return key in self.confirmed_before or len(self.earlier.get(key, ())) >= evaluations


class History:
    """Files of one signer up to a round.

    receipts: of all audited files, by digest.
    """

    def __init__(self, receipts: Mapping[str, Receipt]) -> None:
        self._receipts = receipts
        self._first_block: int | None = None
        self._seasons: dict[tuple[object, ...], Season] = {}
        self._stands: dict[str, list[Stand]] = {}
        self._datasets: dict[str, dict[SubmissionKey, Dataset]] = {}
        self._missing: set[str] = set()
        self._refused: set[str] = set()
        self._weights: list[WeightsLine] = []
        self._last_tables: list[dict[str, float]] = []

    def add(self, header: RoundHeader) -> CheckedRound:
        """Check the signer's next round."""
        if self._first_block is None:
            self._first_block = header.start_block
        season = self._season(header)
        earlier = {key: dict(losses) for key, losses in season.losses.items()}
        newest = {hotkey: stands[-1] for hotkey, stands in self._stands.items()}
        self._add_stands(header, newest)
        versions = self._versions(header)
        checked = CheckedRound(
            [], season, self._first_block, newest, earlier, versions, self._refused, {*season.ledger}
        )
        self._refused = {line.hotkey for line in header.table if line.reason is Reason.DUPLICATE}
        checked.findings += self._check_evaluations(header, season)
        checked.findings += _check_means(header, checked)
        checked.findings += self._check_ranks(header, checked)
        checked.findings += _check_credits(header, checked)
        checked.findings += self._check_shares(header, checked)
        for line in header.ledger:
            key = ContentKey(line.hotkey, line.digest)
            season.ledger[key] = line
            version, block = versions.get(key), line.rank_block
            # The same rows in the hotkey's next registration become public later.
            if version is not None and version.registration_block == line.registration_block:
                block = max(block, version.public_block)
            season.seed_blocks.setdefault(key, block)
        season.planned.append((header.start_block, Counter(line.hotkey for line in header.evaluations)))
        return checked

    def _season(self, header: RoundHeader) -> Season:
        return self._seasons.setdefault((*header.season, header.incentives.blocks_per_epoch), Season())

    def _add_stands(self, header: RoundHeader, newest: Mapping[str, Stand]) -> None:
        """Add the stands of this round, and the datasets that its file names."""
        entries = [line.to_entry(header.competition.id) for line in header.entries]
        gone = {line.hotkey: SubmissionKey(line.hotkey, line.entry) for line in header.table if line.reason in MISSING}
        self._missing |= {*gone, *header.missing}
        # A file that is missed in this round is downloaded or evaluated in it; the others were missing before.
        tried = {*header.queue, *(line.hotkey for line in header.evaluations)}
        missing = {key for hotkey, key in gone.items() if hotkey not in tried}
        datasets = self._datasets.setdefault(header.competition.digest, {})
        for stand in extend_stands(
            newest, entries, header.start_block, header.incentives.blocks_per_epoch, missing=missing, datasets=datasets
        ):
            if stand.key.hotkey in header.missing:
                stand = dataclasses.replace(stand, missing_block=header.start_block)
            stands = self._stands.setdefault(stand.key.hotkey, [])
            if stands and stands[-1].first_block == stand.first_block:
                stands.pop()
            stands.append(stand)
        for line in header.datasets:
            if line.digest is not None:
                datasets[SubmissionKey(line.hotkey, line.entry)] = Dataset(digest=line.digest, row_keys=())

    def _versions(self, header: RoundHeader) -> dict[ContentKey, Version]:
        rules, datasets = header.incentives, self._datasets[header.competition.digest]
        return {
            ContentKey(hotkey, version.digest): version
            for hotkey in {line.hotkey for line in header.entries} & self._stands.keys()
            for version in find_versions(
                self._stands.get(hotkey, ()), datasets, period=rules.blocks_per_epoch, update_blocks=rules.update_blocks
            )
        }

    def _check_evaluations(self, header: RoundHeader, season: Season) -> Iterator[Finding]:
        """Check the seeds and receipts of the round, and add its losses."""
        for line in header.evaluations:
            key, where = ContentKey(line.hotkey, line.digest), f"{line.hotkey}: evaluation {line.number}"
            drawn = season.seeds.setdefault((key, line.number), line.lucky_num)
            if drawn != line.lucky_num:
                yield Finding(Kind.SEED, f"{where} has lucky_num {line.lucky_num}, in an earlier file {drawn}")
            if line.loss is None:
                continue
            if line.receipt not in self._receipts:
                yield Finding(Kind.RECEIPT, f"{where}: its receipt is in no file here")
            loss = season.losses.setdefault(key, {}).setdefault(line.number, line.loss)
            if loss != line.loss:
                yield Finding(Kind.MEAN, f"{where} has loss {line.loss!r}, in an earlier file {loss!r}")

    def _check_ranks(self, header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
        """Check the ranks of the ledger, and those that the seed blocks rest on."""
        season, versions = checked.season, checked.versions
        listed = set()
        for line in header.ledger:
            key = ContentKey(line.hotkey, line.digest)
            listed.add(key)
            past, version = season.ledger.get(key), versions.get(key)
            rank = (line.rank_block, line.commit_block)
            if past is not None and rank != (past.rank_block, past.commit_block):
                text = f"rank {rank} in the ledger, in an earlier file {(past.rank_block, past.commit_block)}"
                yield Finding(Kind.RANK, f"{line.hotkey}: {text}")
            elif past is None and (version is None or rank != (version.rank_block, version.commit_block)):
                yield from self._judge(checked, key, *rank, None if version is None else version.rank_block)
        refused = {(line.hotkey, line.digest) for line in header.table if line.reason is not None}
        for key in sorted(season.ledger.keys() - listed - refused):
            yield Finding(Kind.RANK, f"{key.hotkey}: dataset {key.digest[:12]} is left out of the ledger")
        for key, block in _first_seed_blocks(header).items():
            past, version = season.ledger.get(key), versions.get(key)
            expected = version.seed_block if version else None
            if past is not None:
                expected = season.seed_blocks[key]
            elif version is not None and checked.is_confirmed(key, header.incentives.evaluations):
                expected = max(version.rank_block, version.public_block)
            if expected is None or block != first_seed_block(expected, header.incentives):
                yield from self._judge(checked, key, block, None, expected)

    def _judge(
        self, checked: CheckedRound, key: ContentKey, rank_block: int, commit_block: int | None, expected: int | None
    ) -> Iterator[Finding]:
        """Report a rank, or a block of seeds, that is not by the entries, or leave it to the chain.

        commit_block: of the rank, None for seeds. expected: the block by the entries, None without one.
        """
        version = checked.versions.get(key)
        if min(rank_block, version.public_block if version else rank_block) < checked.first_block:
            checked.claimed_ranks.append(ClaimedRank(key, rank_block, commit_block))
        # After a missing file a dataset ranks by its return, which no chain shows.
        elif version is None or rank_block < version.public_block or key.hotkey not in self._missing:
            right = "no block"
            if version is not None and expected is not None:
                right = f"block {expected} (committed in {version.commit_block})"
            claimed = f"block {rank_block}" + ("" if commit_block is None else f" (committed in {commit_block})")
            what = "ranks by" if commit_block is not None else "has seeds from"
            text = f"dataset {key.digest[:12]} {what} {claimed}, by the entries of these files from {right}"
            yield Finding(Kind.RANK, f"{key.hotkey}: {text}")

    def _check_shares(self, header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
        """Check that shares are the table's, the owner's, or the last accepted ones."""
        table = {line.hotkey: line.weight for line in header.table if line.weight > 0.0}
        # A validator that works through missed rounds submits the newest table again.
        tables, self._last_tables = [table, *self._last_tables], [table]
        for line in header.weights:
            shares = {hotkey: share for hotkey, share in line.shares.items() if share > 0.0}
            last = self._last_shares(line.block)
            self._weights.append(line)
            own = tables if line.is_repeat else [table]
            if line.is_accepted is False or not shares or any(_are_close(shares, earlier) for earlier in own):
                continue
            where = f"weights of block {line.block}"
            may_repeat = line.is_repeat or _may_repeat(header, shares, _undecided(header, checked))
            if table and not may_repeat:
                yield Finding(Kind.INCONSISTENT, f"{where}: the shares are not those of the table")
            elif may_repeat and shares in last:
                continue
            elif len(shares) == 1 and not all(own):
                checked.burns.append((line.block, next(iter(shares))))
            elif not last:
                text = "submitted again, and no file here has earlier weights of this signer"
                yield Finding(Kind.REPEAT, f"{where}: {text}")
            else:
                names = ", ".join(sorted(shares.keys() - last[0].keys())) or "other shares"
                yield Finding(Kind.REPEAT, f"{where}: submitted again, and not the last ones of this signer: {names}")

    def _last_shares(self, block: int) -> list[dict[str, float]]:
        """Return the shares last accepted before a block, then any of unknown outcome."""
        shares: list[dict[str, float]] = []
        for line in reversed([line for line in self._weights if line.block <= block and line.is_accepted is not False]):
            shares.append({hotkey: share for hotkey, share in line.shares.items() if share > 0.0})
            if line.is_accepted:
                break
        return shares


def _check_credits(header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
    """Check that credits are not paid once a dataset's file is missing for a day.

    The rows of a dataset that waits are not in the file, so the time until it counts is added.
    """
    rules = header.incentives
    since = header.start_block - max(DAY_BLOCKS, rules.update_blocks + rules.blocks_per_epoch)
    readable = checked.readable
    for line in header.table:
        is_late = checked.first_block <= since and readable.get(line.hotkey, 0) < since
        if line.credit > 0.0 and (is_late or line.reason not in (None, *MISSING)):
            reason = "missing for more than a day" if is_late else f"refused: {line.reason}"
            text = f"credit is paid, and its dataset is {reason}"
            yield Finding(Kind.INCONSISTENT, f"{line.hotkey}: {text}")


def _first_seed_blocks(header: RoundHeader) -> dict[ContentKey, int]:
    """Return the first seed block of each dataset whose seeds are the chain's."""
    period = header.incentives.blocks_per_epoch
    return {
        ContentKey(line.hotkey, line.digest): seed_base(line.seed_block, line.number, period)
        for line in header.evaluations
        if line.seed_block is not None
    }


def _are_close(shares: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return all(
        math.isclose(shares.get(hotkey, 0.0), others.get(hotkey, 0.0), rel_tol=SHARE_TOLERANCE)
        for hotkey in shares.keys() | others.keys()
    )


def _undecided(header: RoundHeader, checked: CheckedRound) -> set[str]:
    """Return the hotkeys that a new season still has to evaluate.

    See `template.rules.leaderboard.find_undecided`.
    """
    first_block = checked.season.planned[0][0] if checked.season.planned else header.start_block
    season_block = max(first_block, header.incentives.season_block)
    rows = [_ledger_row(line) for line in header.ledger]
    confirmed = {row.content.key for row in rows}
    hotkeys = set()
    for line in header.table:
        key = ContentKey(line.hotkey, line.digest or "")
        version = checked.versions.get(key)
        if version is None or line.reason is not None or key in confirmed or version.rank_block >= season_block:
            continue
        losses = checked.season.first_losses(key, line.runs)
        rank = Rank(version.rank_block, version.commit_block, b"")
        content = Content(key=key, rank=rank, registration_block=version.registration_block, losses=tuple(losses))
        if not is_hopeless(content, rows, header.competition, header.incentives):
            hotkeys.add(line.hotkey)
    return hotkeys


def _ledger_row(line: LedgerLine) -> LedgerRow:
    content = Content(
        key=ContentKey(line.hotkey, line.digest),
        rank=Rank(line.rank_block, line.commit_block, b""),
        registration_block=line.registration_block,
    )
    estimate = Estimate(mean=line.mean, spread=line.spread, runs=line.runs, loss=line.loss)
    return LedgerRow(content=content, estimate=estimate, frontier=line.frontier, credit=line.credit)


def _may_repeat(header: RoundHeader, shares: Mapping[str, float], undecided: Set[str]) -> bool:
    """Check whether the last shares may be used instead of the table's.

    See `template.rules.leaderboard.choose_weights`.
    """
    if not undecided.isdisjoint(shares):
        return True
    if any(line.weight > 0.0 for line in header.table) or header.ledger:
        return False
    is_waiting = any(line.reason is None and line.loss is None for line in header.table)
    return bool(undecided) or (is_waiting and all(line.loss is None for line in header.table))


def _check_means(header: RoundHeader, checked: CheckedRound) -> Iterator[Finding]:
    """Recompute means and spreads from the evaluations of all files, to the last bit."""
    for name, lines in (("table", header.table), ("ledger", header.ledger)):
        for line in lines:
            if line.digest is None or line.mean is None:
                continue
            key, where = ContentKey(line.hotkey, line.digest), f"{line.hotkey}, {name}"
            losses = checked.season.first_losses(key, line.runs)
            if line.runs > len(losses):
                missing = line.runs - len(losses)
                yield Finding(Kind.RECEIPT, f"{where}: {missing} of {line.runs} evaluations are in no file here")
                continue
            if line.runs < len(checked.earlier.get(key, {})):
                count = len(checked.earlier[key])
                yield Finding(Kind.MEAN, f"{where}: mean of {line.runs} evaluations, and earlier files have {count}")
            if (line.mean, line.spread) != (expected := _mean_and_spread(losses, header.incentives.sd)):
                text = f"mean {line.mean!r} and spread {line.spread!r}, by its evaluations {expected}"
                yield Finding(Kind.MEAN, f"{where}: {text}")


def _mean_and_spread(losses: Sequence[float], sd: float) -> tuple[float, float | None] | None:
    try:
        estimate = estimate_loss(losses, sd)
    except ArithmeticError:
        return None
    return estimate.mean, estimate.spread
