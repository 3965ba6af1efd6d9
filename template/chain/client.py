"""A synchronous client of one subnet, with a deadline on every call.

A read returns frozen records or raises RemoteError. A write returns an outcome, with the chain's own error name for a
refused call. A write raises NotSubmittedError while the chain has nothing of it, and RemoteError when its result is
unknown, because the deadline passed or the connection dropped after it was sent: it may still land, so callers read the
chain before they retry.

Reads are of the newest finalized block, which no reorganisation can undo. On mainnet it is at least two blocks, 24 s,
behind the best one. Source: the default voting rules of sc-consensus-grandpa, BeforeBestBlockBy(2), which subtensor's
node/src/service.rs uses.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import bittensor as bt
from bittensor import settings
from loguru import logger

from template.chain.commitments import encode_announcement, encode_text
from template.chain.connection import Connection, Link
from template.chain.reads import (
    newest_block,
    read_commit_blocks,
    read_commitment,
    read_registration,
    read_snapshot,
    read_view,
    read_weight_commits,
    read_weights,
    snapshot_at,
)
from template.chain.timelock import beacon_round_at, round_time, timelock_encrypt
from template.chain.wallets import Wallet, open_wallet, verify_signature
from template.chain.weights import WeightLimits, compose_weights, fit_weights, read_limits
from template.chain.writes import Submission, signing_block, write
from template.chain_records import (
    ChainCommitment,
    ChainSnapshot,
    ChainView,
    Outcome,
    PreparedWeights,
    PublishOutcome,
    WeightOutcome,
)
from template.errors import ConfigError, NotSubmittedError, RemoteError

__all__ = [
    "Chain",
    "PublishOutcome",
    "Wallet",
    "beacon_round_at",
    "bt",
    "open_wallet",
    "round_time",
    "verify_signature",
]

T = TypeVar("T")

# Seconds without a new finalized block after which the next endpoint is tried: a block takes about twelve.
STALL_S = 600.0


class Chain(Connection):
    """One subnet on one network, for one hotkey. Not for use by two threads at once.

    Connects on first use. After a failure it connects again on the next use, to the next endpoint in turn.

    Args:
        network: a name in bittensor's settings, or a ws:// or wss:// url.
        wallet: signs messages and calls.
        fallback_endpoints: endpoints after the first one; by default the public ones of a named network.
        archive_endpoints: endpoints for blocks whose state the others dropped; the same default.
        deadline_s: seconds for one exchange with the chain; a method makes at most three.
        clock: monotonic seconds.

    Raises: ConfigError for an invalid network, endpoint, deadline or netuid.
    """

    def __init__(
        self,
        network: str,
        netuid: int,
        *,
        wallet: Wallet | None = None,
        fallback_endpoints: Sequence[str] = (),
        archive_endpoints: Sequence[str] = (),
        deadline_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < netuid <= settings.U16_MAX:
            raise ConfigError(f"--netuid must be 1 to {settings.U16_MAX}, not {netuid}")
        super().__init__(network, fallback_endpoints, archive_endpoints, deadline_s)
        self.network = network
        self.netuid = netuid
        self._key = None if wallet is None else wallet.hotkey
        self._clock = clock
        # Most polls find no newer block.
        self._view: ChainView | None = None
        # Of final blocks, by this connection. Each round needs the hashes of many earlier ones.
        self._hashes: dict[int, str] = {}
        self._newest_block = 0
        self._advanced_at = self._rotated_at = clock()

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        self._hashes.clear()
        super().close()

    @property
    def hotkey(self) -> str:
        """The address that signs. Raises: ConfigError without a wallet."""
        return str(self._signer.ss58_address)

    def sign(self, message: bytes) -> str:
        """Sign with the hotkey; return 128 hex digits. Raises: ConfigError."""
        return bytes(self._signer.sign(message)).hex()

    def view(self) -> ChainView:
        """Read the subnet and all its commitments at the newest block.

        Raises: RemoteError, also for a block behind the newest one read before; UnknownSubnetError for an unknown
        netuid; ConfigError for a tempo of 0.
        """
        last = self._view
        view = self._call(
            "read the subnet", lambda link: read_view(link.client, link.substrate, self.netuid, last=last)
        )
        self._check_progress(view.block)
        self._view = view
        return view

    def snapshot(self, block: int) -> ChainSnapshot:
        """Read neurons and commitments at a past block.

        Raises: RemoteError, also for a block that is not finalized or whose state every node dropped.
        """
        return self._call(
            f"read the subnet at block {block}",
            lambda link: read_snapshot(link.client, link.substrate, self.netuid, block, last=self._view),
        )

    def commit_blocks_of_revealed(self, reveals: Mapping[str, int]) -> dict[str, int]:
        """Return the commit block of each hotkey's commitment, given its reveal block.

        Leaves out a hotkey that had no timelocked commitment one block before. Raises: RemoteError, also for a block
        that is not finalized or whose state every node dropped.
        """
        return self._call("read commit blocks", lambda link: read_commit_blocks(link.client, self.netuid, reveals))

    def block(self) -> int:
        """Return the number of the newest finalized block. Raises: RemoteError."""
        return self._call("read the block number", lambda link: newest_block(link.client))

    def registration_block(self) -> int | None:
        """Return when the subnet was registered, by another read than that of a view; None if it does not exist.

        Raises: RemoteError.
        """
        return self._read("read the registration", lambda snapshot: read_registration(snapshot, self.netuid))

    def head_time(self) -> float:
        """Return the time of the newest block, also of one that is not final, in POSIX seconds. Raises: RemoteError."""
        now_ms = self._call("read the time", lambda link: link.substrate.query("Timestamp", "Now"))
        return int(now_ms) / 1000

    def block_hash(self, block: int) -> str:
        """Return a block's hash in 0x-hex. Raises: RemoteError, also for a future block."""
        if block not in self._hashes:
            value = str(self._call(f"read the hash of block {block}", lambda link: link.substrate.block_hash(block)))
            if block > self._newest_block:
                return value
            self._hashes[block] = value
        return self._hashes[block]

    def commitment(self, hotkey: str) -> ChainCommitment | None:
        """Return a hotkey's current commitment, if any. Raises: RemoteError."""
        return self._call("read the commitment", lambda link: read_commitment(link.client, self.netuid, hotkey))

    def weights(self, uid: int, block: int) -> dict[int, int]:
        """Return the weights of a uid at a block, relative to the largest."""
        return self._call("read the weights", lambda link: read_weights(link.client, self.netuid, uid, block))

    def weight_commits(self, hotkey: str, block: int) -> list[int]:
        """Return the blocks of a hotkey's timelocked weights not revealed at `block`."""
        return self._call(
            "read weight commits", lambda link: read_weight_commits(link.client, self.netuid, hotkey, block)
        )

    def signing_block(self) -> int:
        """Return the block at which the era of a call that is signed now begins. Raises: RemoteError."""
        return self._call("read the newest block", lambda link: signing_block(link.client, link.substrate))

    def publish(self, text: str, block: int | None = None) -> PublishOutcome:
        """Replace the hotkey's commitment by `text`; `block` is from `signing_block`.

        Raises: SubmissionError (BAD_COMMITMENT) unless `text` has 1 to 128 bytes; NotSubmittedError while the chain
        has nothing of the call; RemoteError when the result is unknown; ConfigError without a wallet.
        """
        raw = encode_text(text)
        # Bytes, because the codec reads text that begins with 0x as hex.
        return self._publish({f"Raw{len(raw)}": raw}, block)

    def publish_sealed(self, text: str, reveal_round: int, block: int | None = None) -> PublishOutcome:
        """Replace the hotkey's commitment by `text`, encrypted until a drand round.

        The chain reveals it by itself. Raises: as `publish`, and ConfigError unless the round is in the future.
        """
        return self._publish(timelock_encrypt(text, reveal_round), block)

    def announce_rounds(self, repo: str) -> PublishOutcome:
        """Replace the hotkey's commitment by the name of the repo with its round files.

        Raises: as `publish`.
        """
        return self._publish({"BigRaw": encode_announcement(repo)}, None)

    def _publish(self, field: Mapping[str, object], block: int | None) -> PublishOutcome:
        call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info={"fields": [field]})

        async def compose(link: Link) -> Any:
            return await link.substrate.compose(call)

        outcome = self._write("publish the commitment", compose, block)
        is_temporary = outcome.error == "SpaceLimitExceeded"
        retry = self._blocks_until_epoch() if is_temporary else None
        return PublishOutcome(**vars(outcome), retry_after_blocks=retry)

    def prepare_weights(self, weights: Mapping[int, float]) -> PreparedWeights:
        """Fit relative weights by uid to the subnet's limits; send nothing.

        Raises: ValueError for weights that are not finite, negative or all zero; RemoteError when a limit cannot be
        read; ConfigError without a wallet.
        """
        hotkey = self.hotkey

        async def read(link: Link) -> tuple[WeightLimits, int]:
            limits = await read_limits(await snapshot_at(link.client), self.netuid, hotkey)
            return limits, await signing_block(link.client, link.substrate)

        limits, block = self._call("read the limits of weights", read)
        return fit_weights(weights, limits, block)

    def set_weights(self, prepared: PreparedWeights) -> WeightOutcome:
        """Send prepared weights, plain or timelocked, unless they have a rejection.

        Raises: NotSubmittedError while the chain has nothing of the call; RemoteError when the result is unknown;
        ConfigError without a wallet.
        """
        if prepared.rejection is not None:
            return prepared.rejection
        signer, reveal_rounds = self._signer, list[int]()

        async def compose(link: Link) -> Any:
            call, reveal_round = await compose_weights(link.substrate, signer, self.netuid, prepared.sent)
            reveal_rounds.extend([] if reveal_round is None else [reveal_round])
            return call

        outcome = self._write("set weights", compose, prepared.block)
        if not outcome.is_accepted or not reveal_rounds:
            return WeightOutcome(**vars(outcome))
        return WeightOutcome(**vars(outcome), is_revealed_later=True, reveal_round=reveal_rounds[-1])

    @property
    def _signer(self) -> Any:
        if self._key is None:
            raise ConfigError("--wallet.name and --wallet.hotkey are needed to sign")
        return self._key

    def _check_progress(self, block: int) -> None:
        """Leave a node whose newest block is in the past or does not advance.

        Raises: RemoteError for a block in the past. A chain may stand still by itself, so that only rotates endpoints.
        """
        now, newest = self._clock(), self._newest_block
        if block > newest:
            self._newest_block, self._advanced_at, self._rotated_at = block, now, now
        elif block < newest:
            self.next_endpoint()
            raise RemoteError(f"could not read the subnet: the node is at block {block}, behind block {newest}")
        elif now - self._rotated_at >= STALL_S:
            self._rotated_at = now
            self.next_endpoint()
            logger.warning("no new final block={} seconds={:.0f} action=next_endpoint", block, now - self._advanced_at)

    def _blocks_until_epoch(self) -> int | None:
        # Only a hint beside the refusal.
        try:
            return self._read("read the epoch", lambda snapshot: snapshot.epochs.blocks_until_next_epoch(self.netuid))
        except RemoteError:
            return None

    def _read(self, what: str, operation: Callable[[bt.Snapshot], Awaitable[T]]) -> T:
        async def read(link: Link) -> T:
            return await operation(await snapshot_at(link.client))

        return self._call(what, read)

    def _write(self, what: str, compose: Callable[[Link], Awaitable[Any]], block: int | None) -> Outcome:
        """Send a call; return its outcome, also a refusal. Raises: NotSubmittedError, RemoteError."""
        signer, submission = self._signer, Submission()

        async def run(link: Link) -> Outcome:
            era_block = await signing_block(link.client, link.substrate) if block is None else block
            return await write(link.substrate, lambda: compose(link), signer, era_block, submission)

        try:
            return self._call(what, run)
        except RemoteError as exc:
            if not submission.may_land:
                raise NotSubmittedError(str(exc), exc.retry_after_s) from exc
            unknown = f"could not {what}: result unknown, read the chain before a retry"
            raise RemoteError(f"{unknown} ({exc})", exc.retry_after_s) from exc
