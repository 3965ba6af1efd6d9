"""Spread timelocked weights over an epoch that has more rounds than the chain takes weights.

The chain takes ten timelocked weights of a hotkey in an epoch, refuses more, and reveals all of them together: the last
one counts. So the first nine are spread over the epoch, and the last is kept for the epoch's last round.
Source: subtensor, pallets/subtensor/src/subnets/weights.rs, do_commit_timelocked_mechanism_weights.
"""

from template.chain_records import ChainView
from template.validator.context import Context

MAX_COMMITS = 10


class CommitSlots:
    """Counts this hotkey's timelocked weights of the epoch, when there may be too many."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # By the block of the last weights and the start of the epoch: each weights change the first.
        self._counted: tuple[int, int] | None = None
        self._count = 0

    def next_block(self, view: ChainView) -> int:
        """Return the first block for the next weights, at most the view's own if they may be sent now.

        Raises: RemoteError.
        """
        config, chain = self._context.config, self._context.chain
        period, paced = config.policy.blocks_per_epoch, MAX_COMMITS - 1
        me = None if config.is_offline else view.by_hotkey.get(chain.hotkey)
        if me is None or view.tempo <= paced * period:
            return view.block
        end_block = view.block + view.blocks_until_epoch
        start_block = end_block - view.tempo
        if self._counted != (me.last_update_block, start_block):
            commits = chain.weight_commits(me.hotkey, view.block)
            self._counted = (me.last_update_block, start_block)
            self._count = sum(block >= start_block for block in commits)
        if self._count < paced:
            return start_block + self._count * view.tempo // paced
        return end_block - period if self._count == paced else end_block
