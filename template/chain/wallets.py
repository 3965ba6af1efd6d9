"""Wallets that sign without ever asking anything, and the check of their signatures."""

import re
from pathlib import Path

import bittensor as bt
from bittensor import keyfiles, settings, sp_core

from template.errors import ConfigError

Wallet = bt.Wallet

_SIGNATURE = re.compile(r"[0-9a-f]{128}")


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
