"""The chain seam: the only importer of bittensor, synchronous, and with a deadline on every call.

A read gives frozen records or raises RemoteError. A write gives an outcome: the chain's refusal is an answer, and the
outcome carries the chain's own error name. A write whose fate is unknown (the deadline passed, or the connection
dropped, after it was sent) raises RemoteError: it may yet land, so callers read the chain before they try again.

Reads are of the newest finalized block, which no reorganisation can undo. On mainnet it lies at least two blocks, 24 s,
behind the newest one: voters vote for none less than two below the best that they know. Source: the default voting
rules of sc-consensus-grandpa, BeforeBestBlockBy(2), which subtensor's node/src/service.rs takes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

import bittensor as bt
from bittensor import settings
from bittensor import storage as st
from loguru import logger

from template.chain.commitments import encode_text
from template.chain.endpoints import Endpoints
from template.chain.event_loop import EventLoopThread
from template.chain.reads import read_commit_blocks, read_commitment, read_view, snapshot_at
from template.chain.timelock import beacon_round_at, round_time, timelock_encrypt
from template.chain.wallets import Wallet, open_wallet, verify_signature
from template.constants import WEIGHTS_VERSION
from template.errors import ConfigError, RemoteError
from template.records import ChainCommitment, ChainView, PublishOutcome, WeightOutcome

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

# A label the client can resolve but never dials: with a substrate given, the network is only a name to it.
_SUBSTRATE_LABEL = "ws://127.0.0.1:1"

# Blocks for which a signed call stays valid: a call whose fate is unknown can no longer land after so many.
_ERA_BLOCKS = 32

# Seconds without a new finalized block after which the node is doubted: it normally takes some twelve.
STALL_S = 600.0

_MAX_DEADLINE_S = 3600.0
_STALE_VERSION = "IncorrectWeightVersionKey"

# What the client refuses before it signs, by the name the chain would give it.
_PREFLIGHT_NAMES = {
    bt.ErrorCode.NOT_REGISTERED: "HotKeyNotRegisteredInSubNet",
    bt.ErrorCode.NOT_AUTHORIZED: "NeuronNoValidatorPermit",
    bt.ErrorCode.RATE_LIMITED: "SettingWeightsTooFast",
    bt.ErrorCode.INVALID_ARGUMENT: "WeightVecLengthIsLow",
}

# Answers of the transaction pool after which this call, or an earlier one of the same nonce, may still be included.
_UNSETTLED = {"AlreadyImported", "Dropped", "FinalityTimeout", "Future", "Invalid", "PriorityTooLow"}
_UNSETTLED |= {"Retracted", "Stale", "Usurped"}


@dataclass(frozen=True)
class _Link:
    """One connection: the client, and the substrate below it, which alone tells a block's hash."""

    session: EventLoopThread
    client: bt.Client
    substrate: Any


class Chain:
    """One subnet on one network, as one hotkey. Not for use by two threads at once.

    network: a name the client knows, or a ws:// or wss:// url; only a label when `substrate` is given, which stands
    in for the network. wallet: needed to sign and to write. fallback_endpoints: where the next connection goes after a
    failure of the one before. archive_endpoints: where to read blocks whose state the others have dropped. For both,
    none means the client's public pool for a named network. deadline_s: seconds that one exchange with the chain may
    take, a silent node included; a method makes at most three. clock: seconds that never go back.
    Connects on first use, and again, to the next endpoint in turn, on the first use after any failure.
    Raises: ConfigError when the network, an endpoint, the deadline or the netuid makes no sense.
    """

    def __init__(
        self,
        network: str,
        netuid: int,
        *,
        wallet: Wallet | None = None,
        substrate: object | None = None,
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
        self._substrate: Any = substrate
        label = network if substrate is None else _SUBSTRATE_LABEL
        self._endpoints = Endpoints(label, fallback_endpoints, archive_endpoints)
        self._deadline_s = deadline_s
        self._link: _Link | None = None
        self._clock = clock
        # The newest one viewed: most looks find no newer block.
        self._view: ChainView | None = None
        self._newest = 0
        self._moved_at = self._doubted_at = clock()

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connection; a later call opens a new one."""
        if self._link is not None:
            link, self._link = self._link, None
            link.session.close()

    @property
    def hotkey(self) -> str:
        """The address that signs. Raises: ConfigError when there is no wallet."""
        return str(self._signer.ss58_address)

    def sign(self, message: bytes) -> str:
        """The hotkey's signature in 128 hex digits, see `verify_signature`. Raises: ConfigError without a wallet."""
        return bytes(self._signer.sign(message)).hex()

    def view(self, block: int | None = None) -> ChainView:
        """The subnet and all its commitments at one block, in the same few calls whatever the subnet's size.

        block: a past block, or None for the newest finalized one. Raises: RemoteError, also for a block that is not
        finalized yet or whose state no node asked still has, and when the newest is older than one viewed before;
        ConfigError when the network has no such netuid, or the subnet's tempo is 0.
        """
        what = "read the subnet" if block is None else f"read the subnet at block {block}"
        known = self._view
        view = self._call(what, lambda link: read_view(link.client, link.substrate, self.netuid, block, known=known))
        if block is None:
            self._check_progress(view.block)
            self._view = view
        return view

    def commit_blocks_of_revealed(self, reveals: Mapping[str, int]) -> dict[str, int]:
        """The block in which each hotkey committed what the chain opened in the block given, as all validators read it.

        A hotkey that had no sealed commitment one block before is left out. Raises: RemoteError, also for a block that
        is not finalized yet or before which no node asked still has the state.
        """
        what = "read where the opened commitments were sealed"
        return self._call(what, lambda link: read_commit_blocks(link.client, self.netuid, reveals))

    def block(self) -> int:
        """Number of the newest finalized block. Raises: RemoteError."""
        return int(self._call("read the block number", lambda link: link.client.finalized_block()))

    def block_hash(self, block: int) -> str:
        """Hash of a block, in 0x-hex. Raises: RemoteError, also when there is no such block yet."""
        return str(self._call(f"read the hash of block {block}", lambda link: link.substrate.block_hash(block)))

    def commitment(self, hotkey: str) -> ChainCommitment | None:
        """A hotkey's commitment as it stands, or None when it has none. Raises: RemoteError."""
        return self._call("read the commitment", lambda link: read_commitment(link.client, self.netuid, hotkey))

    def is_registered(self) -> bool:
        """True when the wallet's hotkey has a uid on the subnet. Raises: RemoteError; ConfigError without a wallet."""
        keys = [self.netuid, self.hotkey]
        return self._read("read the registration", lambda at: at.query(st.SubtensorModule.Uids, keys)) is not None

    def publish(self, text: str) -> PublishOutcome:
        """Sets the hotkey's commitment to `text`, which replaces the one before and moves its block.

        Raises: SubmissionError (BAD_COMMITMENT) before anything is sent unless `text` has 1 to 128 bytes;
        RemoteError when the fate is unknown; ConfigError without a wallet.
        """
        raw = encode_text(text)
        # Bytes, because the codec reads text that begins with 0x as hex.
        return self._publish({f"Raw{len(raw)}": raw})

    def publish_sealed(self, text: str, reveal_round: int) -> PublishOutcome:
        """Sets the hotkey's commitment to `text`, which nobody can read before that round of the drand beacon.

        The chain opens it then by itself. Raises: as `publish`, and ConfigError unless the round is in the future.
        """
        return self._publish(timelock_encrypt(text, reveal_round))

    def _publish(self, field: Mapping[str, object]) -> PublishOutcome:
        call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info={"fields": [field]})
        signer = self._signer
        result = self._submit(
            "publish the commitment",
            lambda link: link.client.submit_call(call, signer, signer="hotkey", period=_ERA_BLOCKS),
        )
        if result.success:
            return PublishOutcome(is_accepted=True, message=result.message, block=_block_of(result))
        name = _error_name(result)
        retry = self._blocks_until_epoch() if name == "SpaceLimitExceeded" else None
        return PublishOutcome(is_accepted=False, error=name, message=result.message, retry_after_blocks=retry)

    def set_weights(self, weights: Mapping[int, float], *, version_key: int = WEIGHTS_VERSION) -> WeightOutcome:
        """Sets weights by uid, relative to each other, in the open or sealed, whichever way the subnet runs.

        version_key: this validator's version; the chain takes it when the subnet asks for no newer one. Sealed weights
        would show it only when they are opened, and be dropped then, so it is compared before anything is sent.
        Raises: ValueError unless the weights are finite, not negative and not all zero; RemoteError when the fate is
        unknown; ConfigError without a wallet.
        """
        values = list(weights.values())
        if not any(values) or not all(isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"weights must be finite, not negative and not all zero: {dict(weights)}")
        signer = self._signer
        asked = self._read(
            "read the weights version", lambda at: at.query(st.SubtensorModule.WeightsVersionKey, [self.netuid])
        )
        if int(asked or 0) > version_key:
            return _stale_version(asked, version_key)
        intent = bt.SetWeights(self.netuid, weights=dict(weights), version_key=version_key)
        result = self._submit("set weights", lambda link: link.client.execute(intent, signer, period=_ERA_BLOCKS))
        if not result.success:
            return WeightOutcome(is_accepted=False, error=_error_name(result), message=result.message)
        reveal_round = result.data.get("reveal_round")
        return WeightOutcome(
            is_accepted=True,
            message=result.message,
            block=_block_of(result),
            is_revealed_later=reveal_round is not None,
            reveal_round=reveal_round,
        )

    @property
    def _signer(self) -> Any:
        if self._key is None:
            raise ConfigError("--wallet.name and --wallet.hotkey are needed to sign")
        return self._key

    def _check_progress(self, block: int) -> None:
        """Leaves a node whose newest block lies in the past, or does not move.

        The first raises RemoteError, since nobody may act on the past. The second may be the chain's own standstill, in
        which nothing is wrong with what was read.
        """
        now = self._clock()
        if block < self._newest:
            self._leave_endpoint()
            raise RemoteError(f"could not read the subnet: the node is at block {block}, behind block {self._newest}")
        if block > self._newest:
            self._newest, self._moved_at, self._doubted_at = block, now, now
        elif now - self._doubted_at >= STALL_S:
            self._doubted_at = now
            self._leave_endpoint()
            stalled_s = now - self._moved_at
            logger.warning("no finalized block after {} for {:.0f} s: the next endpoint is asked", block, stalled_s)

    def _leave_endpoint(self) -> None:
        """Has the next call connect, to the next endpoint in turn."""
        self.close()
        self._endpoints.rotate()

    def _blocks_until_epoch(self) -> int | None:
        # Only a hint: the refusal it goes with is known.
        try:
            return self._read("read the epoch", lambda at: at.epochs.blocks_until_next_epoch(self.netuid))
        except RemoteError:
            return None

    def _read(self, what: str, operation: Callable[[bt.Snapshot], Awaitable[T]]) -> T:
        async def read(link: _Link) -> T:
            return await operation(await snapshot_at(link.client))

        return self._call(what, read)

    def _submit(self, what: str, operation: Callable[[_Link], Awaitable[bt.ExtrinsicResult]]) -> bt.ExtrinsicResult:
        """The chain's answer to a write, its refusals and the client's own included; RemoteError when there is none."""

        async def settle(link: _Link) -> bt.ExtrinsicResult:
            try:
                return await operation(link)
            except bt.ChainError as exc:
                # The client's own refusals have a code but neither name nor cause, unlike a failed read.
                name = _PREFLIGHT_NAMES.get(exc.code)
                if exc.name is not None or exc.__cause__ is not None or name is None:
                    raise
                return bt.ExtrinsicResult(success=False, message=exc.message, error=bt.ChainError(exc.message, name))

        # Connected first, so that what fails later may have been sent.
        self._call("connect to the chain", lambda link: asyncio.sleep(0))
        doubt = f"could not {what}: its fate is unknown, so read the chain before trying again"
        try:
            result = self._call(what, settle)
        except RemoteError as exc:
            raise RemoteError(f"{doubt} ({exc})", exc.retry_after_s) from exc
        name = _error_name(result)
        is_included = result.block_hash is not None
        if not result.success and not is_included and (name is None or name in _UNSETTLED):
            raise RemoteError(f"{doubt} ({name or result.message})")
        return result

    def _call(self, what: str, operation: Callable[[_Link], Awaitable[T]]) -> T:
        """What `operation` returns, within the deadline. After any failure the connection is not used again."""
        is_done = is_answered = False
        try:
            link = self._link = self._link or self._open()
            result = link.session.run(lambda: operation(link), self._deadline_s)
            is_done = True
            return result
        except (TimeoutError, CancelledError) as exc:
            raise RemoteError(f"could not {what}: no answer within {self._deadline_s:g} s") from exc
        except (bt.BittensorError, OSError) as exc:
            is_answered = isinstance(exc, bt.ChainError)
            raise RemoteError(f"could not {what}: {exc}", _retry_after_s(exc)) from exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise RemoteError(f"could not {what}: the answer makes no sense to this client: {exc!r}") from exc
        finally:
            if not is_done:
                self.close()
                if not is_answered:
                    self._endpoints.rotate()

    def _open(self) -> _Link:
        substrate = self._substrate or self._endpoints.open()
        # Not Client.connect, which adds only token symbols for display, from a cache in the user's home.
        session = EventLoopThread(substrate.connect, substrate.close)
        return _Link(session, bt.Client(self._endpoints.label, substrate=substrate), substrate)


def _stale_version(asked: object, version_key: int) -> WeightOutcome:
    message = f"the subnet takes weights of version {asked} or newer and this is {version_key}: update this validator"
    return WeightOutcome(is_accepted=False, error=_STALE_VERSION, message=message)


def _error_name(result: bt.ExtrinsicResult) -> str | None:
    return None if result.error is None else result.error.name


def _block_of(result: bt.ExtrinsicResult) -> int | None:
    number = (result.extrinsic_id or "").partition("-")[0]
    return int(number) if number.isdecimal() else None


def _retry_after_s(exc: BaseException) -> float | None:
    text = getattr(exc, "retry_after", None)
    return float(text) if isinstance(text, str) and text.isdecimal() else None
