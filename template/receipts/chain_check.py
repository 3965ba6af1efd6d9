"""Check a round file against the chain: its entries, ranks and weights."""

import math
from collections.abc import Iterator, Mapping, Sequence

from template.chain.protocols import AuditChain
from template.chain_records import ChainCommitment, ChainSnapshot
from template.competition import Competition, Incentives
from template.errors import RemoteError
from template.receipts.findings import Finding, Kind
from template.receipts.history import CheckedRound, ClaimedRank
from template.receipts.round_file import RoundHeader, WeightsLine
from template.receipts.verify import SHARE_TOLERANCE, U16_MAX, different_rules
from template.records import Entry
from template.rules.entries import find_entries, keep_sealed, missing_commit_blocks
from template.rules.leaderboard import weights_by_uid
from template.rules.schedule import UNKNOWN_OUTCOME_BLOCKS
from template.rules.stands import align


def read_entries(header: RoundHeader, chain: AuditChain, block: int) -> dict[str, Entry]:
    """Return the entries of the subnet at a block, by hotkey. Raises: RemoteError."""
    view = chain.snapshot(block)
    reveals = missing_commit_blocks(view, {})
    revealed = chain.commit_blocks_of_revealed(reveals) if reveals else {}
    commit_blocks = {(hotkey, block): revealed.get(hotkey, block) for hotkey, block in reveals.items()}
    return {key.hotkey: entry for key, entry in find_entries(view, header.competition, commit_blocks).items()}


def check_entries(header: RoundHeader, checked: CheckedRound, chain: AuditChain) -> Iterator[Finding]:
    """Compare the entries with the commitments at start_block. Raises: RemoteError.

    The last entry of a hotkey stays while its next commitment is sealed.
    """
    view, period = chain.snapshot(header.start_block), header.incentives.blocks_per_epoch
    sealed = keep_sealed(view, checked.newest, header.competition, period)
    expected = read_entries(header, chain, header.start_block) | {key.hotkey: entry for key, entry in sealed.items()}
    listed = {line.hotkey for line in header.entries}
    for hotkey in sorted(expected.keys() - listed):
        text = f"committed {expected[hotkey].key.commitment} at block {header.start_block}, and is left out of entries"
        yield Finding(Kind.ENTRY, f"{hotkey}: {text}")
    for line in header.entries:
        entry = expected.get(line.hotkey) or _entry_before_seal(header, chain, line.hotkey)
        if entry is None:
            yield Finding(Kind.ENTRY, f"{line.hotkey}: in entries, and has no commitment at block {header.start_block}")
            continue
        is_sealed = _sealed_commitment(view, line.hotkey) is not None
        for kind, name, actual, on_chain in (
            (Kind.ENTRY, "commitment", line.entry, entry.key.commitment),
            (Kind.ENTRY, "uid", line.uid, entry.uid),
            (Kind.ENTRY, "registration block", line.registration_block, entry.registration_block),
            # An entry that stays has the blocks of its first commitment.
            (Kind.ENTRY, "block", line.block, line.block if is_sealed else entry.reveal_block),
            (Kind.RANK, "commit block", line.commit_block, min(line.commit_block, entry.commit_block)
             if is_sealed else entry.commit_block),
        ):  # fmt: skip
            if actual != on_chain:
                yield Finding(kind, f"{line.hotkey}: {name} {actual} in entries, on chain {on_chain}")


def _sealed_commitment(view: ChainSnapshot, hotkey: str) -> ChainCommitment | None:
    sealed = (item for item in view.commitments if item.hotkey == hotkey and item.reveal_round is not None)
    return next(sealed, None)


def _entry_before_seal(header: RoundHeader, chain: AuditChain, hotkey: str) -> Entry | None:
    """Return a hotkey's entry at the last aligned block before it was sealed."""
    period, block = header.incentives.blocks_per_epoch, header.start_block
    while block > 0:
        sealed = _sealed_commitment(chain.snapshot(block), hotkey)
        if sealed is None:
            return read_entries(header, chain, block).get(hotkey) if block < header.start_block else None
        block = (sealed.block - 1) // period * period
    return None


def check_claimed_ranks(header: RoundHeader, claims: Sequence[ClaimedRank], chain: AuditChain) -> Iterator[Finding]:
    """Check ranks from before the first file. Raises: RemoteError.

    A dataset ranks from the first aligned block of its commitment, or later if its hotkey had another one before. The
    seeds of a sealed one count from its reveal.
    """
    for claim in claims:
        where = f"{claim.key.hotkey}: rank block {claim.rank_block} of dataset {claim.key.digest[:12]}"
        if not 0 <= claim.rank_block <= header.start_block:
            yield Finding(Kind.RANK, f"{where} is not between 0 and start_block")
            continue
        if claim.commit_block is not None and claim.rank_block < claim.commit_block:
            yield Finding(Kind.RANK, f"{where} is before the commitment in {claim.commit_block}")
            continue
        commit_block = _commit_block_at(header, chain, claim.key.hotkey, claim.rank_block)
        if commit_block is None:
            yield Finding(Kind.RANK, f"{where}: the hotkey has no valid commitment there")
            continue
        if claim.commit_block is not None and claim.commit_block > commit_block:
            yield Finding(Kind.RANK, f"{where}: committed in {claim.commit_block}, on chain in {commit_block}")
        is_of_seeds = claim.commit_block is None
        if is_of_seeds and _is_reveal_block(header, chain, claim.key.hotkey, claim.rank_block):
            continue
        if not _is_rank_block(header, chain, claim.key.hotkey, claim.rank_block, is_of_seeds=is_of_seeds):
            text = f"its commitment is of block {commit_block}, and no dataset before it counts from so late"
            yield Finding(Kind.RANK, f"{where}: {text}")


def _commit_block_at(header: RoundHeader, chain: AuditChain, hotkey: str, block: int) -> int | None:
    """Return the commit block of a hotkey's commitment at a block, sealed or not."""
    view = chain.snapshot(block)
    sealed = _sealed_commitment(view, hotkey)
    if hotkey in view.by_hotkey and sealed is not None:
        return sealed.block
    entry = read_entries(header, chain, block).get(hotkey)
    return None if entry is None or entry.rejection is not None else entry.commit_block


def _is_reveal_block(header: RoundHeader, chain: AuditChain, hotkey: str, block: int) -> bool:
    """Check that a block is the first aligned one at which the hotkey's commitment could be read."""
    entry = read_entries(header, chain, block).get(hotkey)
    return entry is not None and align(entry.reveal_block, header.incentives.blocks_per_epoch) == block


def _is_rank_block(header: RoundHeader, chain: AuditChain, hotkey: str, block: int, *, is_of_seeds: bool) -> bool:
    """Check that a dataset, or its seeds, can count from a block.

    It counts from its commitment on, or some time after the dataset before it. Seeds do not count from a commitment
    that is still sealed.
    """
    rules, commit_block = header.incentives, None
    while block > 0:
        last, commit_block = commit_block, _commit_block_at(header, chain, hotkey, block)
        if commit_block is None or commit_block == last:
            return False
        is_hidden = is_of_seeds and last is None and _sealed_commitment(chain.snapshot(block), hotkey) is not None
        if align(commit_block, rules.blocks_per_epoch) == block and not is_hidden:
            return True
        block -= rules.update_blocks
        block -= block % rules.blocks_per_epoch
    return False


def check_rules(header: RoundHeader, competition: Competition, incentives: Incentives) -> Iterator[Finding]:
    """Compare the rules of the file with those of the competition."""
    if header.competition != competition:
        text = f"the file is of competition {header.competition.id}, {header.competition.digest[:12]}, and not of"
        yield Finding(Kind.RULES, f"{text} {competition.id}, {competition.digest[:12]}; name it with --competition")
        return
    for name in different_rules(header.incentives, incentives):
        actual, expected = getattr(header.incentives, name), getattr(incentives, name)
        yield Finding(Kind.RULES, f"{name} is {actual} in the file, in the competition {expected}")
    if header.lucky_num_from != incentives.seeds:
        text = f"seeds are {header.lucky_num_from} in the file, by the competition {incentives.seeds}"
        yield Finding(Kind.SEED, text)


class WeightsCheck:
    """Comparison of one signer's weights with the chain, round by round."""

    def __init__(self, chain: AuditChain, signer: str) -> None:
        self._chain = chain
        self._signer = signer
        self._first_block: int | None = None
        self._blocks: set[int] = set()
        # Registration blocks of the hotkeys whose shares may be submitted again.
        self._accepted: Mapping[str, int] | None = None
        self._last_round: Mapping[str, int] = {}
        self.notes: list[str] = []

    def check(self, header: RoundHeader) -> Iterator[Finding]:
        """Check the next round. Raises: RemoteError."""
        self.notes = []
        if self._first_block is None:
            self._first_block = header.opened_block
        for line in header.weights:
            if line.is_accepted is False:
                continue
            where = f"weights of block {line.block}"
            newest, included = self._chain.block(), line.included_block or line.block + 1
            if not line.block < included <= newest + 1:
                text = f"no call of then can be in block {included}, and the newest block is {newest}"
                yield Finding(Kind.WEIGHTS, f"{where}: {text}")
                continue
            block = line.included_block or self._find_inclusion(line)
            if block is None:
                if line.is_accepted:
                    yield Finding(Kind.WEIGHTS, f"{where}: accepted in the file, and not on chain")
                continue
            yield from self._check_unrecorded(block - 1)
            self._blocks.add(block)
            yield from (Finding(Kind.WEIGHTS, f"{where}: {fault}") for fault in self._check_line(header, line, block))
        self._last_round = header.registrations
        newest = self._chain.block()
        if header.end_block <= newest:
            yield from self._check_unrecorded(header.end_block - 1)

    def _find_inclusion(self, line: WeightsLine) -> int | None:
        """Return the block of weights of unknown outcome, None if not on chain."""
        newest = min(line.block + UNKNOWN_OUTCOME_BLOCKS, self._chain.block())
        neuron = self._chain.snapshot(newest).by_hotkey.get(self._signer)
        block = 0 if neuron is None else neuron.last_update_block
        return block if block > line.block else None

    def _check_unrecorded(self, block: int) -> Iterator[Finding]:
        """Check that the newest weights at a block are in a file."""
        assert self._first_block is not None
        neuron = self._chain.snapshot(block).by_hotkey.get(self._signer)
        if neuron is None or neuron.last_update_block <= max(self._first_block, neuron.registration_block):
            return
        newest = neuron.last_update_block
        if newest in self._blocks:
            return
        before = self._chain.weights(neuron.uid, max(self._blocks)) if self._blocks else {}
        self._blocks.add(newest)
        where = f"weights of block {newest}"
        if before and self._chain.weights(neuron.uid, newest) == before:
            self.notes.append(f"{where}, equal to the ones before, are in no file here")
        else:
            yield Finding(Kind.WEIGHTS, f"{where}: on chain, and in no file here")

    def _check_line(self, header: RoundHeader, line: WeightsLine, block: int) -> Iterator[str]:
        """Compare weights with the state of the block that has them."""
        view = self._chain.snapshot(block)
        neuron = view.by_hotkey.get(self._signer)
        if neuron is None or neuron.last_update_block != block:
            yield f"the chain has none of this signer in block {block}"
            return
        yield from self._check_uids(header, line)
        if block in self._chain.weight_commits(self._signer, block):
            revealed = self._find_reveal(block)
            if revealed is None:
                return
            block = revealed
        on_chain = {uid: weight for uid, weight in self._chain.weights(neuron.uid, block).items() if weight}
        expected = {int(uid): weight for uid, weight in (line.sent or line.weights).items()}
        if not _are_equal(expected, on_chain):
            yield f"on chain they are {_in_parts(on_chain)}, in the file {_in_parts(expected)}"

    def _check_uids(self, header: RoundHeader, line: WeightsLine) -> Iterator[str]:
        """Compute the weights by uid again, from the shares and the uids at that block."""
        view = self._chain.snapshot(line.block)
        actual = {int(uid): weight for uid, weight in line.weights.items()}
        for registrations in (header.registrations, self._last_round, self._accepted or {}):
            if _are_close(actual, weights_by_uid(line.shares, view, registrations)):
                self._accepted = registrations
                return
        expected = weights_by_uid(line.shares, view, {})
        is_own = not line.is_repeat and line.shares.keys() == {row.hotkey for row in header.table if row.weight > 0.0}
        # Without the file that earned the shares, a hotkey may have lost its uid and registered again.
        if is_own or self._accepted is not None or not actual.keys() <= expected.keys():
            yield f"by uid they are {actual}, by the shares {expected}"

    def _find_reveal(self, block: int) -> int | None:
        """Return the reveal block of timelocked weights, None if not comparable."""
        low, high = block, self._chain.block()
        if block in self._chain.weight_commits(self._signer, high):
            self.notes.append(f"weights of block {block} are timelocked and not revealed yet: audit again later")
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if block in self._chain.weight_commits(self._signer, middle) else (low, middle)
        if max(self._chain.weight_commits(self._signer, low)) > block:
            self.notes.append(f"weights of block {block} were replaced by later ones before their reveal")
            return None
        return high


def _are_close(weights: Mapping[int, float], others: Mapping[int, float]) -> bool:
    return weights.keys() == others.keys() and all(
        math.isclose(weight, others[uid], rel_tol=SHARE_TOLERANCE) for uid, weight in weights.items()
    )


def _are_equal(expected: Mapping[int, float], on_chain: Mapping[int, int]) -> bool:
    """Check that weights are equal up to the chain's rounding."""
    ours, theirs = _in_parts(expected), _in_parts(on_chain)
    return all(math.isclose(ours.get(uid, 0), theirs.get(uid, 0), abs_tol=1.5) for uid in ours | theirs)


def _in_parts(weights: Mapping[int, float]) -> dict[int, int]:
    largest = max(weights.values(), default=0.0)
    return {uid: round(weight / largest * U16_MAX) for uid, weight in weights.items() if weight > 0.0}


def check_burns(burns: Sequence[tuple[int, str]], chain: AuditChain) -> Iterator[Finding]:
    """Check that all weight of a round without shares went to the subnet's owner.

    Raises: RemoteError.
    """
    for block, hotkey in burns:
        owner = chain.snapshot(block).owner_hotkey
        if hotkey != owner:
            text = f"all weight to {hotkey}, without a share in the table; the subnet's owner is {owner}"
            yield Finding(Kind.REPEAT, f"weights of block {block}: {text}")


def read_or_report(checks: Iterator[Finding], unanswered: list[str]) -> list[Finding]:
    """Return the findings, up to the first failed read of the chain.

    The error is added to `unanswered`.
    """
    findings: list[Finding] = []
    try:
        findings.extend(checks)
    except RemoteError as error:
        unanswered.append(str(error))
    return findings
