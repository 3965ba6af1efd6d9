"""Opening a wallet without ever asking, and checking signatures."""

from pathlib import Path

import pytest

from template.chain.client import Chain, bt, open_wallet, verify_signature
from template.errors import ConfigError
from tests.fixtures.chain import make_key, make_wallet, wallet_of

MINER, VALIDATOR = make_key("miner"), make_key("validator")


def test_signature_verifies_only_for_its_key_and_message() -> None:
    signature = Chain("finney", 1, wallet=wallet_of(MINER)).sign(b"message")
    assert verify_signature(MINER.ss58_address, b"message", signature)
    assert not verify_signature(VALIDATOR.ss58_address, b"message", signature)
    assert not verify_signature(MINER.ss58_address, b"messagE", signature)


def test_malformed_signatures_and_addresses_are_false() -> None:
    signature = MINER.sign(b"m").hex()
    foreign = bt.sp_core.ss58_encode(bt.sp_core.ss58_decode(MINER.ss58_address), 0)
    longer, shorter = ("0x" + signature, signature + "00"), ("", signature[:-2])
    for bad in (*longer, *shorter, "zz" * 64, signature.upper(), " " + signature[1:]):
        assert not verify_signature(MINER.ss58_address, b"m", bad)
    for bad in ("", "5F", "\0", foreign, MINER.ss58_address + " "):
        assert not verify_signature(bad, b"m", signature)


def test_open_wallet_loads_the_hotkey_alone(tmp_path: Path) -> None:
    made = make_wallet(tmp_path, "w")
    opened = open_wallet("w", "default", tmp_path)
    assert opened.hotkey.ss58_address == made.hotkey.ss58_address
    assert not opened.coldkey_file.exists_on_device()


def test_open_wallet_names_the_setting_of_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--wallet\.name"):
        open_wallet("nobody", "default", tmp_path)
    for name, hotkey in (("", "h"), ("a/b", "h"), ("..", "h")):
        with pytest.raises(ConfigError, match=r"--wallet\.name"):
            open_wallet(name, hotkey, tmp_path)
    with pytest.raises(ConfigError, match=r"--wallet\.hotkey"):
        open_wallet("a", "../../x", tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"secretPhrase": "abandon ability able"}', b"public"])
def test_unreadable_key_is_a_config_error_that_quotes_nothing(tmp_path: Path, content: bytes) -> None:
    wallet = make_wallet(tmp_path, "w")
    if content == b"public":
        content = Path(wallet.hotkey_file.path + "pub.txt").read_bytes()
    Path(wallet.hotkey_file.path).write_bytes(content)
    with pytest.raises(ConfigError, match=r"--wallet\.hotkey") as caught:
        open_wallet("w", "default", tmp_path)
    assert "abandon" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_locked_key_is_a_config_error_and_nothing_is_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wallet = make_wallet(tmp_path, "w")
    # The client's mark of an encrypted key; unlocking a real one takes seconds.
    Path(wallet.hotkey_file.path).write_bytes(b"$NACL" + bytes(300))
    with pytest.raises(ConfigError, match=f"is encrypted.*{wallet.hotkey_file.env_var_name()}"):
        open_wallet("w", "default", tmp_path)
    assert capfd.readouterr() == ("", "")


# Each step with a locked key takes seconds, by its design.
@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> bt.Wallet:
    """A wallet in the folder `path` whose hotkey has the password "secret"."""
    wallet = bt.Wallet("w", "locked", path=str(tmp_path_factory.mktemp("locked")))
    wallet.create_new_hotkey(use_password=True, hotkey_password="secret", suppress=True)
    return wallet


@pytest.mark.slow
def test_locked_key_opens_with_the_password_in_the_environment(locked: bt.Wallet) -> None:
    locked.hotkey_file.save_password_to_env("secret")
    try:
        opened = open_wallet("w", "locked", locked.path)
    finally:
        locked.hotkey_file.remove_password_from_env()
    assert opened.hotkey.ss58_address == locked.hotkey.ss58_address


@pytest.mark.slow
def test_locked_key_opens_with_a_plain_password(locked: bt.Wallet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an operator writes it into the environment."""
    variable = locked.hotkey_file.env_var_name()
    monkeypatch.setenv(variable, "secret")
    assert open_wallet("w", "locked", locked.path).hotkey.ss58_address == locked.hotkey.ss58_address
    monkeypatch.setenv(variable, "another")
    with pytest.raises(ConfigError, match=f"is encrypted, and what {variable} holds does not unlock it"):
        open_wallet("w", "locked", locked.path)


def test_key_of_another_scheme_is_a_config_error(tmp_path: Path) -> None:
    bt.Wallet("w", "ed", path=str(tmp_path)).create_new_hotkey(suppress=True, crypto_type=bt.CRYPTO_ED25519)
    with pytest.raises(ConfigError, match="sr25519"):
        open_wallet("w", "ed", tmp_path)
