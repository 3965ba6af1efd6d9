"""Read the chain for each tick, and refuse what a validator must not act on.

Before the first view is used: a node whose newest block is old, another chain, a hotkey without a uid. At every view: a
subnet that was dissolved, or whose netuid was given to another.
"""

from datetime import UTC, datetime

from template.chain_records import ChainView
from template.constants import MAX_HEAD_AGE_S
from template.errors import ConfigError, RemoteError, SubnetGoneError, UnknownSubnetError
from template.terminal import format_duration
from template.validator.context import Context
from template.validator.rounds import check_chain


class ViewReader:
    """Reads the newest view of the subnet that the state belongs to."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_admitted = False
        # The subnet was gone at the last read. One more read, of the next endpoint if there is one, must agree.
        self._was_gone = False

    def read(self) -> ChainView:
        """Return the newest view.

        Raises: RemoteError for an answer that is not believed; SubnetGoneError after two reads that agree; ConfigError
        before the first view was returned.
        """
        try:
            view = self._context.chain.view()
        except UnknownSubnetError as error:
            self._check_gone(error)
            raise
        except ConfigError as error:
            if not self._is_admitted:
                raise
            # The settings were right at the start, so the node's answer is wrong.
            raise RemoteError(f"unusable answer from the chain: {error}") from error
        if not self._is_admitted:
            self._check_clock()
            check_chain(self._context, view)
            self._context.history.check_signer(view)
        self._check_registration(view)
        if not self._is_admitted:
            self._check_hotkey(view)
        self._is_admitted = True
        self._was_gone = False
        return view

    def _check_clock(self) -> None:
        """Raise RemoteError if the node's newest block is old, and let the next read ask the next endpoint."""
        chain, now = self._context.chain, self._context.now()
        head_time = chain.head_time()
        if now - head_time <= MAX_HEAD_AGE_S:
            return
        chain.next_endpoint()
        times = (f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" for seconds in (head_time, now))
        block_time, machine_time = times
        raise RemoteError(
            f"the node's newest block is of {block_time} UTC, {format_duration(now - head_time)} before this machine's"
            f" clock, {machine_time} UTC: the node is behind or the chain stands still, or the clock is wrong (compare"
            " it with `date -u` elsewhere). Nothing starts until both agree; another endpoint is asked, see"
            " --subtensor.network and --subtensor.fallback_endpoints"
        )

    def _check_hotkey(self, view: ChainView) -> None:
        if not self._context.config.is_offline and self._context.chain.hotkey not in view.by_hotkey:
            raise ConfigError(
                f"the hotkey {self._context.chain.hotkey} is not on netuid {view.netuid}: register it, or use --offline"
            )

    def _check_registration(self, view: ChainView) -> None:
        """Record the subnet, or compare it with the recorded one."""
        store, recorded = self._context.store, self._context.store.subnet()
        if recorded is None:
            store.record_subnet(view.netuid, view.registered_block)
            return
        netuid, registered_block = recorded
        if netuid != view.netuid:
            raise ConfigError(
                f"the state {store.path} is of netuid {netuid}: use another --state_dir for {view.netuid}"
            )
        if view.registered_block == registered_block:
            return
        if (
            view.registered_block < registered_block
            or self._context.chain.registration_block() != view.registered_block
        ):
            raise RemoteError(
                f"netuid {netuid} was registered in block {registered_block} for this state, and the metagraph says"
                f" {view.registered_block}, which storage does not confirm"
            )
        self._stop(
            f"netuid {netuid} was given to another subnet in block {view.registered_block}: this state is of the one of"
            f" block {registered_block}. Use another --state_dir to validate the new one"
        )

    def _check_gone(self, error: UnknownSubnetError) -> None:
        """Stop if the state is of a subnet that two reads do not find any more."""
        recorded = self._context.store.subnet()
        if recorded is None or recorded[0] != self._context.chain.netuid:
            return
        if not self._is_admitted:
            self._check_clock()
        self._stop(f"{error}: the subnet of this state, registered in block {recorded[1]}, was dissolved")

    def _stop(self, reason: str) -> None:
        if self._was_gone:
            raise SubnetGoneError(reason)
        self._was_gone = True
        self._context.chain.next_endpoint()
        raise RemoteError(f"{reason}; the next endpoint is asked before this validator stops")
