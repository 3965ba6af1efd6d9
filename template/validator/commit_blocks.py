"""Commit blocks of revealed commitments, which the chain drops at the reveal."""

from loguru import logger

from template.errors import RemoteError
from template.records import ChainSnapshot
from template.rules.entries import CommitBlocks, missing_commit_blocks, prune_commit_blocks
from template.validator.context import Context

# Blocks after which a revealed commitment ranks by its reveal, when no node has its commit block.
COMMIT_BLOCK_TIMEOUT_BLOCKS = 50


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
            found = self._chain.commit_blocks_of_revealed(missing)
        except RemoteError as error:
            logger.warning("commit block unknown for {} revealed commitments: {}", len(missing), error)
            late = (newest_block or view.block) - COMMIT_BLOCK_TIMEOUT_BLOCKS
            self.blocks = {**self.blocks, **{item: item[1] for item in missing.items() if item[1] < late}}
            return
        read = {(hotkey, block): found.get(hotkey, block) for hotkey, block in missing.items()}
        self._store.record_commit_blocks(read)
        self.blocks = {**self.blocks, **read}

    def add(self, commit_blocks: CommitBlocks) -> None:
        """Record commit blocks that a round file has."""
        self._store.record_commit_blocks(commit_blocks)
        self.blocks = {**self.blocks, **commit_blocks}

    def prune(self, *, before_block: int) -> None:
        """Drop old commit blocks; see `template.rules.entries.prune_commit_blocks`."""
        self.blocks = prune_commit_blocks(self.blocks, before_block=before_block)
