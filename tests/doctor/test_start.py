"""What a start of validator and miner checks: all faults at once, and only those end it."""

import shutil
from pathlib import Path

import pytest

from scripts import check_dataset, doctor
from template.chain import wallets
from template.localnet.network import make_hotkey
from tests.fixtures.miner import arguments as miner_arguments
from tests.fixtures.miner import run as run_miner
from tests.fixtures.network import VALIDATOR, Ended, Net, call_main, load_main, write_training_args


def start_validator(net: Net, name: str, *flags: object) -> Ended:
    training = ("--training_args", write_training_args(net.parts.folder / "args.yaml"), "--wandb.off")
    state = ("--state_dir", net.parts.folder / "state", "--max_epochs", 1, "--poll_seconds", 0.01)
    return call_main(load_main(VALIDATOR), *net.chain_arguments(name), *training, *state, *flags)


def errors(ended: Ended) -> list[str]:
    return [line.partition(" ERROR   ")[2] for line in ended.logs if " ERROR " in line]


def test_start_names_faults_of_all_kinds_at_once(net: Net, tiny_model: Path, tmp_path: Path) -> None:
    make_hotkey(net.parts, "stranger")
    broken = shutil.copytree(tiny_model, tmp_path / "model")
    (broken / "tokenizer.json").unlink()
    moved = tmp_path / "competition.yaml"
    moved.write_text(net.parts.competition.read_text().replace(net.competition.eval_commit, "f" * 40))
    flags = ("--device", "cuda:99", "--keep_days", 0, "--competition", moved, "--model_path", broken)
    ended = start_validator(net, "stranger", *flags)
    assert ended.status == 3 and ended.output == ""
    expected = [
        "--keep_days must be 1 or more, not 0.0",
        "cannot download the competition's evaluation set: sample/pool has no such commit",
        f"--model_path {broken}: no tokenizer found",
        "--device cuda:99: torch ",
        "is not on netuid 96: register it, or use --offline. What to do: btcli subnets register --netuid 96",
    ]
    assert len(errors(ended)) == len(expected), ended.logs
    assert [text for text, line in zip(expected, errors(ended), strict=True) if text not in line] == []


def test_start_of_a_miner_names_all_faults_at_once(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hotkey(net.parts, "stranger")
    monkeypatch.setenv("HF_TOKEN", "hf_read_alice")
    ended = run_miner(net, wallet="stranger", path=net.parts.folder / "gone.jsonl")
    assert ended.status == 3
    read_only, gone, unregistered = sorted(errors(ended), key=lambda line: "dataset_path netuid".find(line[2:6]))
    texts = "\n".join((read_only, gone, unregistered))
    assert "does not let this token write" in texts and "gone.jsonl: cannot be read" in texts
    assert "is not on netuid 96. What to do: btcli subnets register" in texts
    assert net.calls() == []


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_proxy_that_is_down_is_a_warning(
    net: Net, tiny_model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://user:s3cr3t@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ended = start_validator(net, "validator", "--model_path", tiny_model, "--keep_days", 0)
    (warning,) = [line for line in ended.logs if "WARNING" in line]
    assert f"proxy: {name}: 127.0.0.1:9 does not answer: Connection refused. What to do: start the proxy" in warning
    assert len(errors(ended)) == 1 and "s3cr3t" not in "".join(ended.logs)


def test_hub_that_is_down_does_not_end_a_start(net: Net, tiny_model: Path) -> None:
    net.hub.close()
    ended = start_validator(net, "validator", "--model_path", tiny_model, "--keep_days", 0)
    (warning,) = [line for line in ended.logs if "WARNING" in line]
    assert "evaluation set: sample/pool@" in warning and "could not be looked up" in warning
    assert errors(ended) == ["--keep_days must be 1 or more, not 0.0"]


def test_locked_hotkey_names_its_variable(net: Net, tiny_model: Path) -> None:
    """No redaction takes the sentence for a secret."""
    path = net.parts.wallets / "validator" / "hotkeys" / "default"
    path.write_bytes(b"$NACL" + bytes(300))
    (line,) = errors(start_validator(net, "validator", "--model_path", tiny_model))
    variable = "BT_PW_" + str(path).upper().replace("/", "_").replace(".", "_")
    assert line == (
        f"--wallet.hotkey default is encrypted: put its password into {variable}, or use an unencrypted hotkey"
    )


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The wallets that commands open, each of which takes seconds where the hotkey is encrypted."""
    opened: list[str] = []

    def open_wallet(name: str, hotkey: str, path: str | Path) -> wallets.Wallet:
        opened.append(name)
        return original(name, hotkey, path)

    original = wallets.open_wallet
    monkeypatch.setattr(wallets, "open_wallet", open_wallet)
    return opened


def test_start_opens_its_wallet_once(net: Net, openings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_local_alice")
    assert run_miner(net, more=("--dry_run",)).status == 0
    assert openings == ["alice"]


def test_doctor_and_reader_open_their_wallet_once(net: Net, openings: list[str]) -> None:
    # Checked by itself and as a setting, at the same time.
    call_main(doctor.main, "--role", "miner", *miner_arguments(net))
    words = [word for word in miner_arguments(net) if word not in ("--poll_seconds", "0.01")]
    assert call_main(check_dataset.main, *words).status == 0
    assert openings == ["alice"]


def test_locked_hotkey_is_tried_once(net: Net, tiny_model: Path, openings: list[str]) -> None:
    (net.parts.wallets / "validator" / "hotkeys" / "default").write_bytes(b"$NACL" + bytes(300))
    assert start_validator(net, "validator", "--model_path", tiny_model).status == 3
    assert openings == ["validator"]
