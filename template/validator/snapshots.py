"""Read the subnet at the start of a missed round, from the chain or from --bootstrap_rounds."""

from loguru import logger

from template.errors import RemoteError
from template.records import ChainSnapshot, ChainView
from template.validator.commit_blocks import CommitBlockIndex
from template.validator.context import Context

# Attempts to read the subnet at the start of a missed round, before it is left out: a quarter of an hour.
MAX_UNREAD_STARTS = 8


class SnapshotReader:
    """Reads the starts of rounds, and counts failed attempts in a row."""

    def __init__(self, context: Context, commit_blocks: CommitBlockIndex) -> None:
        self._context = context
        self._commit_blocks = commit_blocks
        self._failures = 0

    def read(self, view: ChainView, start_block: int) -> ChainSnapshot:
        """Read the subnet at a block, or at a later start if no node and no file has it. Raises: RemoteError."""
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
