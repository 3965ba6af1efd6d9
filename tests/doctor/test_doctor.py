"""The command `subnet doctor`: everything that is wrong, in one run."""

import io
import json
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from scripts import doctor
from template.chain.client import open_wallet
from template.doctor.findings import Check, Finding, failed, passed, run_checks
from template.doctor.full import print_findings
from template.localnet.network import make_hotkey
from tests.fixtures.miner import arguments as miner_arguments
from tests.fixtures.network import Ended, Net, call_main, write_training_args

_DAY_S = 86_400


def run_doctor(net: Net, name: str, *flags: object, model_path: Path) -> Ended:
    """Run the command for a validator `name`, without a measurement."""
    state = ("--state_dir", net.parts.folder / "state", "--model_path", model_path)
    training = ("--training_args", write_training_args(net.parts.folder / "args.yaml"))
    return call_main(doctor.main, "--measure_seconds", 0, *net.chain_arguments(name), *state, *training, *flags)


def run_miner_doctor(net: Net, *flags: object, repo: str = "alice/data") -> Ended:
    """Run the command for the miner alice."""
    return call_main(doctor.main, "--role", "miner", *miner_arguments(net, *flags, repo=repo))


def lines(ended: Ended, level: str) -> dict[str, str]:
    """Return the findings of a level by their check; the last of each."""
    rows = [line for line in ended.output.splitlines() if line[:8].strip() == level]
    return {line[8:26].strip(): line[26:] for line in rows}


@contextmanager
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port on which nothing listens, and which nothing else takes."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def move_clock(net: Net, seconds: float) -> None:
    """Move the times of all blocks."""
    with sqlite3.connect(net.parts.chain_file) as db:
        db.execute("UPDATE clock SET started_at = started_at + ?", (seconds,))


def lock_hotkey(net: Net, name: str) -> str:
    """Register a hotkey without permit and stake, then make its file an encrypted one; return its address."""
    make_hotkey(net.parts, name)
    wallet = open_wallet(name, "default", net.parts.wallets)
    net.admin.register(wallet.hotkey.ss58_address)
    # The client's mark of an encrypted key; unlocking a real one takes seconds.
    Path(wallet.hotkey_file.path).write_bytes(b"$NACL" + bytes(300))
    return str(wallet.hotkey.ss58_address)


def test_doctor_names_eleven_faults_in_one_run(
    net: Net, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "model")
    (broken / "model.safetensors").unlink()
    hotkey = lock_hotkey(net, "dave")
    move_clock(net, -90 * _DAY_S)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with used_port() as port, closed_port() as dead:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{dead}")
        flags = ("--subtensor.fallback_endpoints", f"ws://127.0.0.1:{dead}", "--min_free_gb", 10**7, "--ports", port)
        ended = run_doctor(net, "dave", *flags, "--metrics.port", port, "--device", "cuda:99", model_path=broken)
    assert ended.status == 1
    failures = lines(ended, "failure")
    expected = {
        "wallet": "--wallet.hotkey default is encrypted: put its password into BT_PW_",
        "permit": f"btcli stake add --netuid 96 --hotkey {hotkey}",
        "endpoint": f"--subtensor.fallback_endpoints ws://127.0.0.1:{dead}: could not",
        "clock": " s behind this machine's clock: one of the two is wrong. What to do: compare `date -u`",
        "proxy": f"HTTPS_PROXY: 127.0.0.1:{dead} does not answer: Connection refused",
        "token": "the Hub does not accept our token. What to do: run `hf auth login`",
        "disk": "GB are needed. What to do: free space",
        "model": f"--model_path {broken}: model.safetensors is missing",
        "device": "--device cuda:99: torch ",
        "port": f"--ports {port}: Address already in use",
        "settings": f"--metrics.port {port}: Address already in use",
    }
    assert failures.keys() == expected.keys(), ended.output
    assert [name for name, text in expected.items() if text not in failures[name]] == [], ended.output


def test_doctor_passes_a_machine_without_faults(net: Net, tiny_model: Path) -> None:
    ended = run_doctor(net, "validator", "--device", "cpu", model_path=tiny_model)
    assert ended.status == 0, ended.output
    assert lines(ended, "failure") == {}
    assert lines(ended, "warning").keys() == {"time"}
    ok = {"wallet", "registration", "permit", "endpoint", "clock", "proxy", "hub", "token", "evaluation set", "disk"}
    assert lines(ended, "ok").keys() == ok | {"temporary folder", "settings", "model", "device"}
    assert not (net.parts.folder / "state").exists(), "it changes nothing"


def test_doctor_prints_json(net: Net, tiny_model: Path) -> None:
    findings = json.loads(run_doctor(net, "alice", "--device", "cpu", "--json", model_path=tiny_model).output)
    (permit,) = [finding for finding in findings if finding["check"] == "permit"]
    assert permit["level"] == "failure" and permit["remedy"].startswith("btcli stake add --netuid 96")


def test_terminal_gets_a_table_in_which_nothing_moves_the_cursor() -> None:
    console = Console(
        force_terminal=True, color_system=None, width=60, file=io.StringIO(), highlight=False, markup=False
    )
    findings = [
        passed("wallet", "hotkey 5F opens"),
        failed("disk", "\x1b[2J [red]1 GB[/red] free " + "x" * 60, "free space"),
    ]
    with console.capture() as capture:
        print_findings(findings, console)
    rows = [row.rstrip() for row in capture.get().splitlines()]
    assert rows[0] == "ok       wallet  hotkey 5F opens" and rows[1].startswith(
        "failure  disk    \\x1b[2J [red]1 GB[/red]"
    )
    assert rows[-1] == "                 What to do: free space" and max(map(len, rows)) <= 60


def test_unregistered_hotkey_is_told_what_to_type(net: Net, tiny_model: Path) -> None:
    make_hotkey(net.parts, "stranger")
    ended = run_doctor(net, "stranger", "--device", "cpu", model_path=tiny_model)
    # On the network that was named, not on btcli's own.
    where = f"--network {net.network} --wallet-path {net.parts.wallets}"
    typed = f"What to do: btcli subnets register --netuid 96 --wallet stranger --wallet-hotkey default {where}"
    assert lines(ended, "failure").keys() == {"registration"}
    assert lines(ended, "failure")["registration"].endswith(typed)
    ended = run_doctor(net, "alice", "--device", "cpu", model_path=tiny_model)
    assert lines(ended, "failure")["permit"].endswith(f"--amount-tao AMOUNT {where}")


def test_node_ahead_of_the_clock_is_named(net: Net, tiny_model: Path) -> None:
    move_clock(net, 3600)
    failures = lines(run_doctor(net, "validator", "--device", "cpu", model_path=tiny_model), "failure")
    assert failures.keys() == {"clock"} and "ahead of this machine's clock" in failures["clock"]


def test_secret_in_an_address_is_not_printed(net: Net, tiny_model: Path) -> None:
    flags = ("--device", "cpu", "--subtensor.fallback_endpoints", "ws://user:s3cr3t@127.0.0.1:9")
    ended = run_doctor(net, "validator", *flags, model_path=tiny_model)
    assert "endpoint" in lines(ended, "failure") and "s3cr3t" not in ended.output + "".join(ended.logs)


@pytest.mark.parametrize(
    ("token", "repo", "text"),
    [
        ("hf_read_alice", "alice/data", "does not let this token write: it is a read token of alice"),
        ("hf_local_bob", "alice/data", "is of bob, role write: it cannot write to alice/data, only below bob"),
        ('"hf_local_alice"', "alice/data", "the Hub token is in quotes: remove them"),
        ("hf_no one", "alice/data", "contains spaces, line breaks or other illegal characters"),
        ("", "alice/data", "no Hub token: set HF_TOKEN, or run `hf auth login`"),
    ],
)
def test_token_with_which_a_miner_cannot_write(
    net: Net, token: str, repo: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    ended = run_miner_doctor(net, repo=repo)
    failures = lines(ended, "failure")
    assert ended.status == 1 and failures.keys() == {"token"} and text in failures["token"], ended.output


def test_miner_without_faults_passes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_local_alice")
    ended = run_miner_doctor(net)
    assert ended.status == 0, ended.output
    assert lines(ended, "ok")["token"] == "the Hub token is of alice, role write"


def test_unknown_flag_of_the_program_is_refused(net: Net) -> None:
    assert run_miner_doctor(net, "--blocks_per_eppoch", 5).status == 2


def test_check_that_hangs_holds_up_no_other() -> None:
    hangs = threading.Event()

    def hang() -> Iterator[Finding]:
        yield passed("slow", "half done")
        hangs.wait(60)

    def fail() -> Iterator[Finding]:
        raise ZeroDivisionError("a bug")

    checks = [Check(name="slow", run=hang, timeout_s=0.2), Check(name="bad", run=fail)]
    findings = run_checks([*checks, Check(name="good", run=lambda: [passed("good", "fine")])])
    hangs.set()
    assert [(finding.check, finding.level.value) for finding in findings] == [
        ("slow", "ok"), ("slow", "failure"), ("bad", "failure"), ("good", "ok"),
    ]  # fmt: skip
    assert findings[1].text == "no result within 0.2 s" and "ZeroDivisionError" in findings[2].text
