"""Check the round files of one signer against each other, in the order of their rounds. Pure.

Losses, ranks and weights of a round follow from the rounds before it. A loss that rests on no file proves nothing, so
a missing file is a finding too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from template.receipts.findings import Finding, Kind
from template.receipts.receipt import Receipt
from template.receipts.round_file import RoundHeader, WeightsLine
from template.records import ContentKey, Dataset, LedgerLine, Stand, SubmissionKey
from template.rules.entries import MISSING, parse_entry
from template.rules.evaluations import seed_block
from template.rules.ledger import estimate_loss
from template.rules.stands import Version, extend_stands, find_versions


@dataclass(frozen=True)
class ClaimedRank:
    """A rank from before the first file, which only the chain can confirm.

    commit_block: None if the file does not say.
    """

    key: ContentKey
    rank_block: int
    commit_block: int | None


@dataclass
class Season:
    """The evaluations of one competition, model and source of seeds up to a round.

    ledger: confirmed datasets. planned: start block and evaluations of each hotkey, by round.
    """

    losses: dict[ContentKey, dict[int, float]] = field(default_factory=dict)
    seeds: dict[tuple[ContentKey, int], int] = field(default_factory=dict)
    ledger: dict[ContentKey, LedgerLine] = field(default_factory=dict)
    planned: list[tuple[int, Counter[str]]] = field(default_factory=list)

    def first_losses(self, key: ContentKey, runs: int) -> list[float]:
        """Return the losses of a dataset's first evaluations, as far as files have them."""
        return [loss for number, loss in sorted(self.losses.get(key, {}).items()) if 0 < number <= runs]


@dataclass
class RoundHistory:
    """One round beside the earlier ones.

    earlier: losses of each dataset in earlier rounds, by number. versions: the newest version of each dataset that
    stands. claimed_ranks: see `ClaimedRank`. burns: block and hotkey of weights that only the subnet's owner may get.
    """

    findings: list[Finding]
    season: Season
    earlier: Mapping[ContentKey, Mapping[int, float]]
    versions: Mapping[ContentKey, Version]
    claimed_ranks: list[ClaimedRank] = field(default_factory=list)
    burns: list[tuple[int, str]] = field(default_factory=list)


class History:
    """The files of one signer up to a round. receipts: of all files at hand, by digest."""

    def __init__(self, receipts: Mapping[str, Receipt]) -> None:
        self._receipts = receipts
        self._first_block: int | None = None
        self._seasons: dict[tuple[object, ...], Season] = {}
        self._stands: dict[str, list[Stand]] = {}
        self._datasets: dict[str, dict[SubmissionKey, Dataset]] = {}
        self._missing: set[str] = set()
        self._weights: list[WeightsLine] = []

    def add(self, header: RoundHeader) -> RoundHistory:
        """Check the signer's next round."""
        if self._first_block is None:
            self._first_block = header.start_block
        season = self._season(header)
        earlier = {key: dict(losses) for key, losses in season.losses.items()}
        self._add_stands(header)
        checked = RoundHistory([], season, earlier, self._versions(header))
        checked.findings += self._check_evaluations(header, season)
        checked.findings += _check_means(header, checked)
        checked.findings += self._check_ranks(header, checked)
        checked.findings += self._check_repeats(header, checked)
        season.ledger.update({ContentKey(line.hotkey, line.digest): line for line in header.ledger})
        season.planned.append((header.start_block, Counter(line.hotkey for line in header.evaluations)))
        return checked

    def _season(self, header: RoundHeader) -> Season:
        period = header.incentives.blocks_per_epoch
        model = (header.competition.digest, header.hyperparameters_digest, header.model)
        return self._seasons.setdefault((*model, header.lucky_num_from, period), Season())

    def _add_stands(self, header: RoundHeader) -> None:
        """Add the stands of this round, and the datasets that its file names."""
        newest = {hotkey: stands[-1] for hotkey, stands in self._stands.items()}
        entries = [
            parse_entry(
                SubmissionKey(line.hotkey, line.entry),
                header.competition.id,
                uid=line.uid,
                reveal_block=line.block,
                commit_block=line.commit_block,
                registration_block=line.registration_block,
            )
            for line in header.entries
        ]
        for stand in extend_stands(newest, entries, header.start_block, header.incentives.blocks_per_epoch):
            stands = self._stands.setdefault(stand.key.hotkey, [])
            if stands and stands[-1].first_block == stand.first_block:
                stands.pop()
            stands.append(stand)
        datasets = self._datasets.setdefault(header.competition.digest, {})
        for line in header.datasets:
            if line.digest is not None:
                datasets[SubmissionKey(line.hotkey, line.entry)] = Dataset(digest=line.digest, row_keys=())
        self._missing.update(line.hotkey for line in header.table if line.reason in MISSING)

    def _versions(self, header: RoundHeader) -> dict[ContentKey, Version]:
        rules, datasets = header.incentives, self._datasets[header.competition.digest]
        return {
            ContentKey(hotkey, version.digest): version
            for hotkey in {line.hotkey for line in header.entries}
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

    def _check_ranks(self, header: RoundHeader, checked: RoundHistory) -> Iterator[Finding]:
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
                yield from self._judge(checked, key, *rank)
        refused = {(line.hotkey, line.digest) for line in header.table if line.reason is not None}
        for key in sorted(season.ledger.keys() - listed - refused):
            yield Finding(Kind.RANK, f"{key.hotkey}: dataset {key.digest[:12]} is left out of the ledger")
        for key, rank_block in _seeded_ranks(header).items():
            known = season.ledger.get(key) or versions.get(key)
            if known is None or rank_block != known.rank_block:
                yield from self._judge(checked, key, rank_block, None)

    def _judge(
        self, checked: RoundHistory, key: ContentKey, rank_block: int, commit_block: int | None
    ) -> Iterator[Finding]:
        """Report a rank that is not by the entries, or leave it to the chain."""
        assert self._first_block is not None
        version = checked.versions.get(key)
        if min(rank_block, version.first_block if version else rank_block) < self._first_block:
            checked.claimed_ranks.append(ClaimedRank(key, rank_block, commit_block))
        # After a missing file a dataset ranks by its return, which no chain shows.
        elif version is None or rank_block < version.rank_block or key.hotkey not in self._missing:
            actual = f"block {version.rank_block} (committed in {version.commit_block})" if version else "no block"
            yield Finding(
                Kind.RANK,
                f"{key.hotkey}: dataset {key.digest[:12]} ranks by block {rank_block} (committed in"
                f" {'any' if commit_block is None else commit_block}), by the entries of these files {actual}",
            )

    def _check_repeats(self, header: RoundHeader, checked: RoundHistory) -> Iterator[Finding]:
        """Check that shares which are not the table's are the last ones that the chain accepted."""
        is_paid = any(line.weight > 0.0 for line in header.table)
        for line in header.weights:
            if (line.is_repeat or not is_paid) and line.is_accepted is not False and line.shares:
                allowed = [] if header.ledger and not line.is_repeat else self._last_shares(line.block)
                if len(line.shares) == 1 and not line.is_repeat and dict(line.shares) not in allowed:
                    checked.burns.append((line.block, next(iter(line.shares))))
                elif not allowed:
                    text = "submitted again, and no file here has earlier weights of this signer"
                    yield Finding(Kind.REPEAT, f"weights of block {line.block}: {text}")
                elif dict(line.shares) not in allowed:
                    names = ", ".join(sorted({*line.shares} - {*allowed[0]})) or "other shares"
                    text = f"submitted again, and they are not the last ones of this signer: {names}"
                    yield Finding(Kind.REPEAT, f"weights of block {line.block}: {text}")
            self._weights.append(line)

    def _last_shares(self, block: int) -> list[dict[str, float]]:
        """Return the last accepted shares before a block, and later ones of unknown outcome."""
        shares: list[dict[str, float]] = []
        for line in reversed([line for line in self._weights if line.block <= block and line.is_accepted is not False]):
            shares.append(dict(line.shares))
            if line.is_accepted:
                break
        return shares


def _seeded_ranks(header: RoundHeader) -> dict[ContentKey, int]:
    """Return the rank block that the seeds of each dataset rest on, if they are the chain's."""
    period = header.incentives.blocks_per_epoch
    return {
        ContentKey(line.hotkey, line.digest): line.seed_block - seed_block(0, line.number, period)
        for line in header.evaluations
        if line.seed_block is not None
    }


def _check_means(header: RoundHeader, checked: RoundHistory) -> Iterator[Finding]:
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
