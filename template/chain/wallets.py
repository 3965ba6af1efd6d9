"""Wallets that sign without a prompt, and the verification of their signatures."""

import functools
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bittensor as bt
from bittensor import keyfiles, settings, sp_core

from template.errors import ConfigError

Wallet = bt.Wallet

_UNLOCKING = threading.Lock()
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def open_wallet(name: str, hotkey: str, path: str | Path) -> Wallet:
    """Open a wallet and load its hotkey, without a prompt or the coldkey.

    An encrypted hotkey takes its password from the environment variable that the client names after the file, as the
    client saves it there or plain.
    Raises: ConfigError for a missing, locked or non-sr25519 key file.
    """
    for setting, value in (("--wallet.name", name), ("--wallet.hotkey", hotkey)):
        if not value or "/" in value or value in (".", ".."):
            raise ConfigError(f"{setting} must be the name of a folder or file, not {value!r}")
    wallet = bt.Wallet(name, hotkey, path=str(Path(path).expanduser()))
    file = wallet.hotkey_file
    if not file.exists_on_device():
        raise ConfigError(f"no hotkey at {file.path}: see --wallet.name, --wallet.hotkey and --wallet.path")
    try:
        key = _unlock(wallet, hotkey) if file.is_encrypted() else wallet.get_hotkey(None)
        key.sign(b"")
    except (OSError, ValueError, TypeError, sp_core.KeyfileError, sp_core.WrongPasswordError):
        # The client's message may quote the file, so it is dropped.
        raise ConfigError(f"--wallet.hotkey {hotkey}: {file.path} holds no readable key") from None
    if key.crypto_type != sp_core.CRYPTO_SR25519:
        raise ConfigError(f"--wallet.hotkey {hotkey} must be an sr25519 key")
    return wallet


def open_wallet_once(name: str, hotkey: str, path: Path) -> Wallet:
    """Open a wallet as `open_wallet` does, and keep it: to unlock an encrypted hotkey takes seconds.

    A command checks the wallet before its work opens it, and `doctor` does both at the same time. Raises: ConfigError.
    """
    with _UNLOCKING:
        opened = _open(name, hotkey, path)
    if isinstance(opened, ConfigError):
        raise opened
    return opened


@functools.cache
def _open(name: str, hotkey: str, path: Path) -> Wallet | ConfigError:
    try:
        return open_wallet(name, hotkey, path)
    except ConfigError as error:
        return error


@dataclass(frozen=True)
class PublicWallet:
    """The public part of a hotkey: it reads as this hotkey and cannot sign."""

    hotkey: Any


def open_public_wallet(name: str, hotkey: str, path: str | Path) -> PublicWallet | None:
    """Return the public part of a hotkey that need not open, None without its file."""
    try:
        return PublicWallet(bt.Wallet(name, hotkey, path=str(Path(path).expanduser())).hotkeypub)
    except (OSError, ValueError, TypeError, sp_core.KeyfileError):
        return None


def _unlock(wallet: Wallet, hotkey: str) -> Any:
    """Return the key of an encrypted hotkey. Raises: ConfigError."""
    variable = wallet.hotkey_file.env_var_name()
    passwords = {os.environ.get(variable)}
    with suppress(ValueError, sp_core.KeyfileError):
        # The client saves a password encoded. A plain one is an error for it, or garbage.
        passwords.add(keyfiles.resolve_key_password(env_var_name=variable, allow_prompt=False))
    passwords -= {None, ""}
    for password in passwords:
        with suppress(ValueError, sp_core.KeyfileError, sp_core.WrongPasswordError):
            return wallet.get_hotkey(password)
    if passwords:
        raise ConfigError(f"--wallet.hotkey {hotkey} is encrypted, and what {variable} holds does not unlock it")
    raise ConfigError(
        f"--wallet.hotkey {hotkey} is encrypted: put its password into {variable}, or use an unencrypted hotkey"
    )


def verify_signature(hotkey_ss58: str, message: bytes, signature_hex: str) -> bool:
    """Verify a hotkey's signature of `message`, 128 lower-case hex digits.

    The client also accepts a signature of the message between `<Bytes>` and `</Bytes>`, the form of browser wallets.
    So a message must name its purpose, or a signature made elsewhere could pass here.
    """
    try:
        if _SIGNATURE.fullmatch(signature_hex) is None:
            return False
        if sp_core.ss58_encode(sp_core.ss58_decode(hotkey_ss58), settings.SS58_FORMAT) != hotkey_ss58:
            return False
        return bool(sp_core.verify(message, bytes.fromhex(signature_hex), hotkey_ss58))
    except (TypeError, ValueError):
        return False
