"""Find a hotkey's committed dataset and the seeds of its evaluations.

Earlier commitments are read from a node with the state of past blocks. A commitment has the block where it was set, so
one read skips all the time in which it was current.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from template.chain.protocols import AuditChain
from template.chain_records import ChainSnapshot
from template.competition import Competition, Incentives, Seeds
from template.constants import DATA_FILE
from template.data.eval_set import EvalSetIndex
from template.errors import ConfigError, RemoteError, SubmissionError
from template.records import Dataset, Entry, Stand, SubmissionKey
from template.rules.entries import find_entries
from template.rules.evaluations import PER_ROUND, derive_seed, first_seed_block, seed_block
from template.rules.stands import align, extend_stands, find_versions

_MAX_EARLIER = 64


@dataclass(frozen=True, kw_only=True)
class CommittedDataset:
    """A dataset as validators evaluate it.

    folder: has its data.jsonl. seeds: of its first evaluations. seed_blocks: aligned blocks that give them.
    seed_count: number of evaluations whose seed is public. has_history: whether earlier commitments could be read;
    without them the rank block may be later.
    """

    key: SubmissionKey
    digest: str
    folder: Path
    rank_block: int
    seeds: tuple[int, ...]
    seed_blocks: tuple[int, ...]
    seed_count: int
    has_history: bool


@dataclass(frozen=True)
class Reader:
    """Access to one competition. folder: of the downloads."""

    chain: AuditChain
    competition: Competition
    incentives: Incentives
    eval_set: EvalSetIndex
    folder: Path


def find_committed(reader: Reader, hotkey: str, count: int) -> CommittedDataset:
    """Return the hotkey's dataset with the seeds of at most `count` evaluations.

    Raises: ConfigError while its seeds cannot be known; SubmissionError when validators reject it.
    """
    incentives, chain = reader.incentives, reader.chain
    period = incentives.blocks_per_epoch
    if incentives.seeds is not Seeds.CHAIN:
        raise ConfigError(
            "the competition draws its seeds at random (incentives.seeds), so they are unknown until a validator"
            " publishes its receipts; evaluate with seeds of your own, without --as_validator"
        )
    view = chain.snapshot(chain.block())
    newest = view.block - view.block % period
    entry = _find_entry(reader, view, hotkey)
    if entry is None:
        raise ConfigError(
            f"the hotkey {hotkey} has no readable commitment on netuid {view.netuid} in block {view.block}"
        )
    datasets = {entry.key: _download(reader, entry)}
    history, has_history = [(newest, entry)], True
    try:
        history += _earlier_entries(reader, entry)
    except RemoteError as error:
        has_history = False
        logger.warning("earlier commitments cannot be read, so the rank block may be later: {}", error)
    for _, earlier in history[1:]:
        try:
            datasets.setdefault(earlier.key, _download(reader, earlier))
        except SubmissionError as error:
            logger.warning("an earlier commitment is left out: {}: {}", earlier.key.commitment, error)
    stands = _make_stands(history, period)
    version = find_versions(stands, datasets, period=period, update_blocks=incentives.update_blocks)[-1]
    first = first_seed_block(version.seed_block, incentives)
    if (counts := max(version.rank_block, first)) > newest:
        raise ConfigError(f"the dataset counts from block {counts}: its seeds are known from then on")
    seed_count = min(PER_ROUND * ((newest - first) // period + 1), incentives.hold)
    blocks = [seed_block(first, number, period) for number in range(1, min(seed_count, count) + 1)]
    hashes = {block: chain.block_hash(block) for block in set(blocks)}
    return CommittedDataset(
        key=entry.key,
        digest=version.digest,
        folder=_folder(reader, entry),
        rank_block=version.rank_block,
        seeds=tuple(derive_seed(hashes[block], version.digest, number) for number, block in enumerate(blocks, start=1)),
        seed_blocks=tuple(blocks),
        seed_count=seed_count,
        has_history=has_history,
    )


def _find_entry(reader: Reader, view: ChainSnapshot, hotkey: str) -> Entry | None:
    """Return the hotkey's readable commitment in a view."""
    reveals = {item.hotkey: item.block for item in view.commitments if item.hotkey == hotkey and item.is_revealed}
    revealed = reader.chain.commit_blocks_of_revealed(reveals) if reveals else {}
    commit_blocks = {(hotkey, block): revealed.get(hotkey, block) for block in reveals.values()}
    entries = find_entries(view, reader.competition, commit_blocks)
    return next((entry for key, entry in entries.items() if key.hotkey == hotkey), None)


def _earlier_entries(reader: Reader, current: Entry) -> Iterator[tuple[int, Entry]]:
    """Yield the hotkey's earlier readable commitments, newest first.

    Each comes with the last aligned block at which it was current.
    """
    hotkey, period = current.key.hotkey, reader.incentives.blocks_per_epoch
    commit_block, reveal_block = current.commit_block, current.reveal_block
    for _ in range(_MAX_EARLIER):
        block = align(commit_block, period) - period
        if block <= current.registration_block:
            return
        view = reader.chain.snapshot(block)
        commitment = next((item for item in view.commitments if item.hotkey == hotkey), None)
        if commitment is None:
            return
        entry = _find_entry(reader, view, hotkey)
        commit_block = commitment.block
        if entry is not None:
            # It stays current while the next one is sealed.
            yield max(block, align(reveal_block, period) - period), entry
            commit_block, reveal_block = entry.commit_block, entry.reveal_block
    logger.warning("only the last {} commitments are read", _MAX_EARLIER)


def _make_stands(history: list[tuple[int, Entry]], period: int) -> list[Stand]:
    """Return the stands that a validator would have recorded. history: newest first."""
    stands: dict[int, Stand] = {}
    newest: dict[str, Stand] = {}
    for block, entry in reversed(history):
        for seen in (align(entry.commit_block, period), block):
            for stand in extend_stands(newest, [entry], seen, period):
                stands[stand.first_block] = newest[entry.key.hotkey] = stand
    return list(stands.values())


def _folder(reader: Reader, entry: Entry) -> Path:
    return reader.folder / entry.accepted_record.commit


def _download(reader: Reader, entry: Entry) -> Dataset:
    """Download and check a dataset; raise as a validator would reject it."""
    # Here, so that `compute_loss --help` does not wait for huggingface_hub.
    from template.hub.datasets import download_dataset

    record = entry.accepted_record
    # Without a token, as validators download.
    file = download_dataset(record.namespace, record.commit, _folder(reader, entry), hotkey=record.hotkey)
    return reader.eval_set.check(file.path.read_bytes(), name=DATA_FILE, max_rows=reader.competition.rows)
