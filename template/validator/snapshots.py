"""Read the subnet at the start of a round, with the commit blocks of reveals.

A missed round's start comes from the chain, or from --bootstrap_rounds. The chain drops commit blocks at the reveal.
"""

from loguru import logger

from template.chain_records import ChainSnapshot, ChainView
from template.errors import RemoteError
from template.rules.entries import CommitBlocks, missing_commit_blocks, prune_commit_blocks
from template.validator.context import Context

# Blocks after which a revealed commitment ranks by its reveal, when no node has its commit block.
COMMIT_BLOCK_TIMEOUT_BLOCKS = 50

# Attempts to read the subnet at the start of a missed round, before it is left out: a quarter of an hour.
MAX_UNREAD_STARTS = 8


class CommitBlockIndex:
    """The commit blocks that were read, by hotkey and reveal block.

    They are in the chain's state of the block before the reveal, so they are read while most nodes still have it.
    """

    def __init__(self, context: Context) -> None:
        self.blocks: CommitBlocks = context.store.commit_blocks()
        self._chain = context.chain
        self._store = context.store

    def update(self, view: ChainSnapshot, newest_block: int | None = None) -> None:
        """Read and record the missing commit blocks of `view`.

        While no node returns them, the commitments are left out. After a while they rank by their reveal, until this
        process ends. newest_block: of the chain, by default the view's.
        """
        missing = missing_commit_blocks(view, self.blocks)
        if not missing:
            return
        try:
            commit_blocks = self._chain.commit_blocks_of_revealed(missing)
        except RemoteError as error:
            logger.warning("commit block unknown for {} revealed commitments: {}", len(missing), error)
            late = (newest_block or view.block) - COMMIT_BLOCK_TIMEOUT_BLOCKS
            self.blocks = {**self.blocks, **{item: item[1] for item in missing.items() if item[1] < late}}
            return
        read = {(hotkey, block): commit_blocks.get(hotkey, block) for hotkey, block in missing.items()}
        self._store.record_commit_blocks(read)
        self.blocks = {**self.blocks, **read}

    def add(self, commit_blocks: CommitBlocks) -> None:
        """Record commit blocks that a round file has."""
        self._store.record_commit_blocks(commit_blocks)
        self.blocks = {**self.blocks, **commit_blocks}

    def prune(self, *, before_block: int) -> None:
        """Drop old commit blocks; see `template.rules.entries.prune_commit_blocks`."""
        self.blocks = prune_commit_blocks(self.blocks, before_block=before_block)


class SnapshotReader:
    """Reads the starts of rounds, and counts failed attempts in a row."""

    def __init__(self, context: Context, commit_blocks: CommitBlockIndex) -> None:
        self._context = context
        self._commit_blocks = commit_blocks
        self._failures = 0

    def read(self, view: ChainView, start_block: int) -> ChainSnapshot:
        """Read the subnet at a block, or at a later start if no source has it.

        Raises:
            RemoteError: If the chain cannot be read.
        """
        try:
            snapshot = self._read(start_block)
        except RemoteError as error:
            self._failures += 1
            later = self._later_start(view, start_block)
            if self._failures < MAX_UNREAD_STARTS or start_block >= later:
                raise
            logger.error(
                "no node returns the subnet at block {}: {}; the rounds before block {} are left out. An archive node"
                " (--subtensor.archive_endpoints) has them, or the round files of another validator"
                " (--bootstrap_rounds): without them, ranks and losses may differ from those of other validators",
                start_block, error, later,
            )  # fmt: skip
            snapshot = self._read(later)
        self._failures = 0
        return snapshot

    def _later_start(self, view: ChainView, start_block: int) -> int:
        """Return the next start of a file, else the newest start."""
        newest = view.block - view.block % self._context.config.policy.blocks_per_epoch
        return min(newest, self._context.history.next_block(start_block) or newest)

    def _read(self, block: int) -> ChainSnapshot:
        context = self._context
        try:
            return context.chain.snapshot(block)
        except RemoteError:
            from_file = context.history.snapshot(context.chain.netuid, block, context.chain.block_hash(block))
            if from_file is None:
                raise
        snapshot, commit_blocks = from_file
        logger.warning("entries of block {} are from --bootstrap_rounds: no node has the state to check them", block)
        self._commit_blocks.add(commit_blocks)
        return snapshot
