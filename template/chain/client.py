"""A synchronous client of one subnet, with a deadline on every call.

A read returns frozen records or raises RemoteError. A write returns an outcome, with the chain's own error name for a
refused call. A write raises RemoteError when its result is unknown, because the deadline passed or the connection
dropped after it was sent: it may still land, so callers read the chain before they retry.

Reads are of the newest finalized block, which no reorganisation can undo. On mainnet it is at least two blocks, 24 s,
behind the best one. Source: the default voting rules of sc-consensus-grandpa, BeforeBestBlockBy(2), which subtensor's
node/src/service.rs uses.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

import bittensor as bt
from bittensor import settings
from loguru import logger

from template.chain.commitments import encode_announcement, encode_text
from template.chain.endpoints import Endpoints
from template.chain.event_loop import EventLoopThread
from template.chain.outcomes import block_of, error_name, retry_after_s
from template.chain.reads import (
    newest_block,
    read_commit_blocks,
    read_commitment,
    read_snapshot,
    read_view,
    read_weight_commits,
    read_weights,
    snapshot_at,
)
from template.chain.runtime_cache import forget_runtimes
from template.chain.timelock import beacon_round_at, round_time, timelock_encrypt
from template.chain.wallets import Wallet, open_wallet, verify_signature
from template.chain.weights import ExactWeights, fit_weights, read_limits
from template.chain_records import (
    ChainCommitment,
    ChainSnapshot,
    ChainView,
    PreparedWeights,
    PublishOutcome,
    WeightOutcome,
)
from template.constants import WEIGHTS_VERSION
from template.errors import ConfigError, RemoteError

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

# Blocks for which a signed call stays valid. After them, a call without an answer cannot land any more.
_ERA_BLOCKS = 32

# Seconds without a new finalized block after which the next endpoint is tried: a block takes about twelve.
STALL_S = 600.0
_MAX_DEADLINE_S = 3600.0

# The client's own refusals, by the chain's error names.
_PREFLIGHT_NAMES = {
    bt.ErrorCode.NOT_REGISTERED: "HotKeyNotRegisteredInSubNet",
    bt.ErrorCode.NOT_AUTHORIZED: "NeuronNoValidatorPermit",
    bt.ErrorCode.RATE_LIMITED: "SettingWeightsTooFast",
    bt.ErrorCode.INVALID_ARGUMENT: "WeightVecLengthIsLow",
}

# Errors of the transaction pool after which this call, or an earlier one with its nonce, may still be included.
_MAY_STILL_LAND = {"AlreadyImported", "Dropped", "FinalityTimeout", "Future", "Invalid", "PriorityTooLow"}
_MAY_STILL_LAND |= {"Retracted", "Stale", "Usurped"}


@dataclass(frozen=True)
class _Connection:
    """A client and the substrate below it, which alone reads block hashes."""

    loop: EventLoopThread
    client: bt.Client
    substrate: Any


_Operation = Callable[[_Connection], Awaitable[T]]


class Chain:
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
        if not 0 < deadline_s <= _MAX_DEADLINE_S:
            raise ConfigError(
                f"--subtensor.deadline_seconds must be above 0 and at most {_MAX_DEADLINE_S:g}, not {deadline_s}"
            )
        self.network = network
        self.netuid = netuid
        self._key = None if wallet is None else wallet.hotkey
        self._endpoints = Endpoints(network, fallback_endpoints, archive_endpoints)
        self._deadline_s = deadline_s
        self._connection: _Connection | None = None
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
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.loop.close()

    @property
    def hotkey(self) -> str:
        """The address that signs. Raises: ConfigError without a wallet."""
        return str(self._signer.ss58_address)

    def sign(self, message: bytes) -> str:
        """Sign with the hotkey; return 128 hex digits. Raises: ConfigError."""
        return bytes(self._signer.sign(message)).hex()

    def view(self) -> ChainView:
        """Read the subnet and all its commitments at the newest block.

        Raises: RemoteError, also for a block behind the newest one read before; ConfigError for an unknown netuid or a
        tempo of 0.
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

    def publish(self, text: str) -> PublishOutcome:
        """Replace the hotkey's commitment by `text`.

        Raises: SubmissionError (BAD_COMMITMENT) unless `text` has 1 to 128 bytes; RemoteError when the result is
        unknown; ConfigError without a wallet.
        """
        raw = encode_text(text)
        # Bytes, because the codec reads text that begins with 0x as hex.
        return self._publish({f"Raw{len(raw)}": raw})

    def publish_sealed(self, text: str, reveal_round: int) -> PublishOutcome:
        """Replace the hotkey's commitment by `text`, encrypted until a drand round.

        The chain reveals it by itself. Raises: as `publish`, and ConfigError unless the round is in the future.
        """
        return self._publish(timelock_encrypt(text, reveal_round))

    def announce_rounds(self, repo: str) -> PublishOutcome:
        """Replace the hotkey's commitment by the name of the repo with its round files.

        Raises: as `publish`.
        """
        return self._publish({"BigRaw": encode_announcement(repo)})

    def _publish(self, field: Mapping[str, object]) -> PublishOutcome:
        call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info={"fields": [field]})
        signer = self._signer
        result = self._submit(
            "publish the commitment",
            lambda link: link.client.submit_call(call, signer, signer="hotkey", period=_ERA_BLOCKS),
        )
        if result.success:
            return PublishOutcome(is_accepted=True, message=result.message, block=block_of(result))
        name = error_name(result)
        retry = self._blocks_until_epoch() if name == "SpaceLimitExceeded" else None
        return PublishOutcome(is_accepted=False, error=name, message=result.message, retry_after_blocks=retry)

    def prepare_weights(self, weights: Mapping[int, float]) -> PreparedWeights:
        """Fit relative weights by uid to the subnet's limits; send nothing.

        Raises: ValueError for weights that are not finite, negative or all zero; RemoteError when a limit cannot be
        read; ConfigError without a wallet.
        """
        hotkey = self.hotkey
        limits = self._read("read the limits of weights", lambda snapshot: read_limits(snapshot, self.netuid, hotkey))
        return fit_weights(weights, limits)

    def set_weights(self, prepared: PreparedWeights) -> WeightOutcome:
        """Send prepared weights, plain or timelocked, unless they have a rejection.

        Raises: RemoteError when the result is unknown; ConfigError without a wallet.
        """
        if prepared.rejection is not None:
            return prepared.rejection
        signer = self._signer
        intent = ExactWeights(self.netuid, weights=dict(prepared.sent), version_key=WEIGHTS_VERSION)
        result = self._submit("set weights", lambda link: link.client.execute(intent, signer, period=_ERA_BLOCKS))
        if not result.success:
            return WeightOutcome(is_accepted=False, error=error_name(result), message=result.message)
        reveal_round = result.data.get("reveal_round")
        return WeightOutcome(
            is_accepted=True,
            message=result.message,
            block=block_of(result),
            is_revealed_later=reveal_round is not None,
            reveal_round=reveal_round,
        )

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
            self._next_endpoint()
            raise RemoteError(f"could not read the subnet: the node is at block {block}, behind block {newest}")
        elif now - self._rotated_at >= STALL_S:
            self._rotated_at = now
            self._next_endpoint()
            logger.warning("no new final block={} seconds={:.0f} action=next_endpoint", block, now - self._advanced_at)

    def _next_endpoint(self) -> None:
        """Let the next call connect to the next endpoint."""
        self.close()
        self._endpoints.rotate()

    def _blocks_until_epoch(self) -> int | None:
        # Only a hint beside the refusal.
        try:
            return self._read("read the epoch", lambda snapshot: snapshot.epochs.blocks_until_next_epoch(self.netuid))
        except RemoteError:
            return None

    def _read(self, what: str, operation: Callable[[bt.Snapshot], Awaitable[T]]) -> T:
        async def read(link: _Connection) -> T:
            return await operation(await snapshot_at(link.client))

        return self._call(what, read)

    def _submit(self, what: str, operation: _Operation[bt.ExtrinsicResult]) -> bt.ExtrinsicResult:
        """Send a write; return its result, also a refusal. Raises: RemoteError."""

        async def run(link: _Connection) -> bt.ExtrinsicResult:
            try:
                return await operation(link)
            except bt.ChainError as exc:
                # Unlike a failed read, the client's own refusals have a code but neither name nor cause.
                name = _PREFLIGHT_NAMES.get(exc.code)
                if exc.name is not None or exc.__cause__ is not None or name is None:
                    raise
                return bt.ExtrinsicResult(success=False, message=exc.message, error=bt.ChainError(exc.message, name))

        # Connect first, so that every later failure counts as sent.
        self._call("connect to the chain", lambda link: asyncio.sleep(0))
        unknown = f"could not {what}: result unknown, read the chain before a retry"
        try:
            result = self._call(what, run)
        except RemoteError as exc:
            raise RemoteError(f"{unknown} ({exc})", exc.retry_after_s) from exc
        name = error_name(result)
        if not result.success and result.block_hash is None and (name is None or name in _MAY_STILL_LAND):
            raise RemoteError(f"{unknown} ({name or result.message})")
        if name == "BadProof":
            # After a runtime upgrade, an open connection signs for the old runtime for 12 seconds more.
            self.close()
        return result

    def _call(self, what: str, operation: _Operation[T]) -> T:
        """Run `operation` within the deadline; drop the connection if it fails."""
        is_done = is_answered = False
        try:
            link = self._connection = self._connection or self._open()
            result = link.loop.run(lambda: operation(link), self._deadline_s)
            is_done = True
            return result
        except (TimeoutError, CancelledError) as exc:
            raise RemoteError(f"could not {what}: no answer within {self._deadline_s:g} s") from exc
        except (bt.BittensorError, OSError) as exc:
            is_answered = isinstance(exc, bt.ChainError)
            raise RemoteError(f"could not {what}: {exc}", retry_after_s(exc)) from exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            forget_runtimes()
            raise RemoteError(f"could not {what}: invalid answer: {exc!r}") from exc
        finally:
            if not is_done:
                self.close()
                if not is_answered:
                    self._endpoints.rotate()

    def _open(self) -> _Connection:
        substrate = self._endpoints.open()
        # Not Client.connect, which also loads token symbols from a cache in the user's home.
        loop = EventLoopThread(substrate.connect, substrate.close)
        return _Connection(loop, bt.Client(self._endpoints.label, substrate=substrate), substrate)
