"""The chain as one node has it: the newest blocks and old states may be missing."""

from pathlib import Path

from template.localnet.chain.chain import LocalChain
from template.localnet.chain.ledger import UnknownBlockError


class DiscardedStateError(Exception):
    """A block whose state the node has pruned."""


class NodeChain(LocalChain):
    """A node's chain. The settings of its faults are not in the file, so other nodes do not have them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._missing_blocks = 0
        self._kept_states: int | None = None

    def set_missing_blocks(self, blocks: int) -> None:
        """Answer as if the newest blocks had not arrived."""
        self._missing_blocks = blocks

    def set_kept_states(self, blocks: int | None) -> None:
        """Discard the states of all but the newest blocks; None keeps them all."""
        self._kept_states = blocks

    def replace(self, path: str) -> None:
        """Continue with the chain in another file. Raises: ConfigError."""
        other = LocalChain(Path(path))
        self.close()
        self.path, self._connection = other.path, other._connection
        self.genesis, self.netuid = other.genesis, other.netuid

    def block(self) -> int:
        return max(0, super().block() - self._missing_blocks)

    def finalized(self) -> int:
        return min(super().finalized(), self.block())

    def number_of(self, block_hash: str) -> int:
        number = super().number_of(block_hash)
        if number > self.block():
            raise UnknownBlockError(f"no block {block_hash}")
        return number

    def check_state(self, block: int) -> None:
        """Raise DiscardedStateError unless the node has the state of a block."""
        if self._kept_states is not None and block <= self.block() - self._kept_states:
            raise DiscardedStateError(self.hash_of(block))
