"""The chain seam: the only importer of bittensor, synchronous, and with a deadline on every call.

A read gives frozen records or raises RemoteError. A write gives an outcome: the chain's refusal is an answer, and the
outcome carries the chain's own error name. A write whose fate is unknown (the deadline passed, or the connection
dropped, after it was sent) raises RemoteError: it may yet land, so callers read the chain before they try again.

Reads are of the newest finalized block, which no reorganisation can undo.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import bittensor as bt
from bittensor import keyfiles, settings, sp_core
from bittensor import storage as st

from template.commitments import to_commitment
from template.constants import MAX_COMMITMENT_BYTES
from template.errors import ConfigError, Reason, RemoteError, SubmissionError
from template.records import ChainCommitment, ChainView, Neuron, PublishOutcome, WeightOutcome
from template.session import Session

__all__ = ["Chain", "PublishOutcome", "Wallet", "bt", "open_wallet", "verify_signature"]

Wallet = bt.Wallet
T = TypeVar("T")

# A label the client can resolve but never dials: with a substrate given, the network is only a name to it.
_SUBSTRATE_LABEL = "ws://127.0.0.1:1"

# Blocks for which a signed call stays valid: a call whose fate is unknown can no longer land after so many.
_ERA_BLOCKS = 32

_SIGNATURE = re.compile(r"[0-9a-f]{128}")

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

    session: Session
    client: bt.Client
    substrate: Any


class Chain:
    """One subnet on one network, as one hotkey. Not for use by two threads at once.

    network: a name the client knows, or a ws:// or wss:// url; only a label when `substrate` is given, which stands
    in for the network. wallet: needed to sign and to write. fallback_endpoints: tried when the first does not answer;
    none means the client's public pool for a named network. deadline_s: seconds that one exchange with the chain may
    take; a method makes at most three.
    Connects on first use, and again on the first use after any failure.
    Raises: ConfigError when the network, an endpoint or the netuid makes no sense.
    """

    def __init__(
        self,
        network: str,
        netuid: int,
        *,
        wallet: Wallet | None = None,
        substrate: object | None = None,
        fallback_endpoints: Sequence[str] = (),
        deadline_s: float = 120.0,
    ) -> None:
        if not 0 < netuid <= settings.U16_MAX:
            raise ConfigError(f"--netuid must be 1 to {settings.U16_MAX}, not {netuid}")
        self.network = network
        self.netuid = netuid
        self._key = None if wallet is None else wallet.hotkey
        self._substrate: Any = substrate
        self._label, self._endpoint = _resolve(network) if substrate is None else (_SUBSTRATE_LABEL, "")
        self._fallbacks = [_check_url(url) for url in fallback_endpoints]
        self._deadline_s = deadline_s
        self._link: _Link | None = None

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

    def view(self) -> ChainView:
        """The subnet and all its commitments at one block, in the same few calls whatever the subnet's size.

        Raises: RemoteError; ConfigError when the network has no such netuid, or the subnet's tempo is 0.
        """
        block, block_hash, graph, remaining, rate_limit = self._call("read the subnet", self._read_view)
        if graph is None:
            raise ConfigError(f"--netuid must be a subnet of {self.network}, and it has no {self.netuid}")
        if remaining is None:
            raise ConfigError(f"--netuid {self.netuid} never runs an epoch: its tempo is 0")
        neurons = tuple(
            Neuron(
                uid=neuron.uid,
                hotkey=neuron.hotkey,
                registration_block=neuron.block_at_registration,
                last_update_block=neuron.last_update,
            )
            for neuron in graph.neurons
        )
        found = [*graph.commitments.values(), *graph.unregistered_commitments.values()]
        commitments = [to_commitment(entry.hotkey, entry.block, entry.fields, entry.revealed) for entry in found]
        return ChainView(
            netuid=self.netuid,
            block=block,
            block_hash=block_hash,
            tempo=graph.tempo,
            blocks_until_epoch=remaining,
            weights_rate_limit=int(rate_limit or 0),
            neurons=neurons,
            commitments=tuple(sorted(commitments, key=lambda entry: (entry.block, entry.hotkey))),
            owner_hotkey=graph.owner_hotkey,
            owner_uid=next((neuron.uid for neuron in neurons if neuron.hotkey == graph.owner_hotkey), None),
        )

    def block(self) -> int:
        """Number of the newest finalized block. Raises: RemoteError."""
        return int(self._call("read the block number", lambda link: link.client.finalized_block()))

    def block_hash(self, block: int) -> str:
        """Hash of a block, in 0x-hex. Raises: RemoteError, also when there is no such block yet."""
        return str(self._call(f"read the hash of block {block}", lambda link: link.substrate.block_hash(block)))

    def commitment(self, hotkey: str) -> ChainCommitment | None:
        """A hotkey's commitment as it stands, or None when it has none. Raises: RemoteError."""

        keys = [self.netuid, hotkey]
        record, revealed = self._read(
            "read the commitment",
            lambda at: asyncio.gather(
                at.query(st.Commitments.CommitmentOf, keys), at.query(st.Commitments.RevealedCommitments, keys)
            ),
        )
        if not isinstance(record, dict):
            return None
        fields = (record.get("info") or {}).get("fields") or []
        opened = [(int(block), "") for _, block in revealed or []]
        return to_commitment(hotkey, int(record.get("block") or 0), list(fields), opened)

    def is_registered(self) -> bool:
        """True when the wallet's hotkey has a uid on the subnet. Raises: RemoteError; ConfigError without a wallet."""
        keys = [self.netuid, self.hotkey]
        return self._read("read the registration", lambda at: at.query(st.SubtensorModule.Uids, keys)) is not None

    def publish(self, text: str) -> PublishOutcome:
        """Sets the hotkey's commitment to `text`, which replaces the one before and moves its block.

        Raises: SubmissionError (BAD_COMMITMENT) before anything is sent unless `text` has 1 to 128 bytes;
        RemoteError when the fate is unknown; ConfigError without a wallet.
        """
        raw = text.encode()
        if not 0 < len(raw) <= MAX_COMMITMENT_BYTES:
            raise SubmissionError(
                Reason.BAD_COMMITMENT, f"a commitment takes 1 to {MAX_COMMITMENT_BYTES} bytes, not {len(raw)}"
            )
        # Bytes, because the codec reads text that begins with 0x as hex.
        call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info={"fields": [{f"Raw{len(raw)}": raw}]})
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

    def set_weights(self, weights: Mapping[int, float]) -> WeightOutcome:
        """Sets weights by uid, relative to each other, in the open or sealed, whichever way the subnet runs.

        Raises: ValueError unless the weights are finite, not negative and not all zero; RemoteError when the fate is
        unknown; ConfigError without a wallet.
        """
        values = list(weights.values())
        if not any(values) or not all(isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"weights must be finite, not negative and not all zero: {dict(weights)}")
        intent = bt.SetWeights(self.netuid, weights=dict(weights))
        signer = self._signer
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

    async def _read_view(self, link: _Link) -> tuple[int, str, Any, int | None, Any]:
        at = await _at_finalized(link)
        return (
            at.block,
            *await asyncio.gather(
                link.substrate.block_hash(at.block),
                at.subnets.metagraph(self.netuid),
                at.epochs.blocks_until_next_epoch(self.netuid),
                at.query(st.SubtensorModule.WeightsSetRateLimit, [self.netuid]),
            ),
        )

    def _blocks_until_epoch(self) -> int | None:
        # Only a hint: the refusal it goes with is known.
        try:
            return self._read("read the epoch", lambda at: at.epochs.blocks_until_next_epoch(self.netuid))
        except RemoteError:
            return None

    def _read(self, what: str, operation: Callable[[bt.Snapshot], Awaitable[T]]) -> T:
        async def read(link: _Link) -> T:
            return await operation(await _at_finalized(link))

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
        is_done = False
        try:
            link = self._link = self._link or self._open()
            result = link.session.run(lambda: operation(link), self._deadline_s)
            is_done = True
            return result
        except (TimeoutError, CancelledError) as exc:
            raise RemoteError(f"could not {what}: no answer within {self._deadline_s:g} s") from exc
        except (bt.BittensorError, OSError) as exc:
            raise RemoteError(f"could not {what}: {exc}", _retry_after_s(exc)) from exc
        except (LookupError, TypeError, ValueError) as exc:
            raise RemoteError(f"could not {what}: the answer makes no sense to this client: {exc!r}") from exc
        finally:
            if not is_done:
                self.close()

    def _open(self) -> _Link:
        substrate = self._substrate
        if substrate is None:
            substrate = bt.RpcSubstrate(
                self._endpoint,
                fallback_endpoints=self._fallbacks or settings.default_fallback_endpoints(self._label),
                archive_endpoints=settings.default_archive_endpoints(self._label),
            )
        # Not Client.connect, which adds only token symbols for display, from a cache in the user's home.
        session = Session(substrate.connect, substrate.close)
        return _Link(session, bt.Client(self._label, substrate=substrate), substrate)


async def _at_finalized(link: _Link) -> bt.Snapshot:
    return await link.client.at(await link.client.finalized_block())


def _error_name(result: bt.ExtrinsicResult) -> str | None:
    return None if result.error is None else result.error.name


def _block_of(result: bt.ExtrinsicResult) -> int | None:
    number = (result.extrinsic_id or "").partition("-")[0]
    return int(number) if number.isdecimal() else None


def _retry_after_s(exc: BaseException) -> float | None:
    text = getattr(exc, "retry_after", None)
    return float(text) if isinstance(text, str) and text.isdecimal() else None


def _resolve(network: str) -> tuple[str, str]:
    try:
        label, endpoint = settings.resolve_endpoint(network)
    except ValueError as exc:
        names = ", ".join(sorted(settings.NETWORKS))
        raise ConfigError(f"--subtensor.network must be {names}, or a ws:// or wss:// url, not {network!r}") from exc
    return label, _check_url(endpoint)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"--subtensor.network must be a url like wss://host:443, not {url!r}")
    return url


def open_wallet(name: str, hotkey: str, path: str | Path) -> Wallet:
    """A wallet whose hotkey is loaded and can sign; its coldkey is not touched. Never asks anything.

    A hotkey under a password is opened with the one in the environment variable that the client names after the
    file. Raises: ConfigError when the key file is missing, locked or no sr25519 key.
    """
    for setting, value in (("--wallet.name", name), ("--wallet.hotkey", hotkey)):
        if not value or "/" in value or value in (".", ".."):
            raise ConfigError(f"{setting} must be the plain name of a folder or file, not {value!r}")
    wallet = bt.Wallet(name, hotkey, path=str(Path(path).expanduser()))
    file = wallet.hotkey_file
    if not file.exists_on_device():
        raise ConfigError(f"no hotkey at {file.path}: see --wallet.name, --wallet.hotkey and --wallet.path")
    try:
        password = None
        if file.is_encrypted():
            password = keyfiles.resolve_key_password(env_var_name=file.env_var_name(), allow_prompt=False)
            if password is None:
                raise ConfigError(
                    f"--wallet.hotkey {hotkey} is under a password: use one without, or set {file.env_var_name()}"
                )
        key = wallet.get_hotkey(password)
        key.sign(b"")
    except (OSError, ValueError, TypeError, sp_core.KeyfileError, sp_core.WrongPasswordError):
        # What the client says may quote the file, so none of it is shown or kept.
        raise ConfigError(f"--wallet.hotkey {hotkey} cannot be used: {file.path} holds no readable key") from None
    if key.crypto_type != sp_core.CRYPTO_SR25519:
        raise ConfigError(f"--wallet.hotkey {hotkey} must be an sr25519 key, as the chain's hotkeys are")
    return wallet


def verify_signature(hotkey_ss58: str, message: bytes, signature_hex: str) -> bool:
    """True when `signature_hex`, 128 lower-case hex digits, is the hotkey's signature of `message`.

    False for anything malformed. The client also takes a signature of the message between `<Bytes>` and `</Bytes>`,
    which is how browser wallets sign: so a message must say what it is for, or one made elsewhere might serve here.
    """
    try:
        if _SIGNATURE.fullmatch(signature_hex) is None:
            return False
        if sp_core.ss58_encode(sp_core.ss58_decode(hotkey_ss58), settings.SS58_FORMAT) != hotkey_ss58:
            return False
        return bool(sp_core.verify(message, bytes.fromhex(signature_hex), hotkey_ss58))
    except (TypeError, ValueError):
        return False
