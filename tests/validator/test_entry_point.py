"""Errors of the validator's command line and their exit status."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.competition import Incentives
from template.config import load_training_args
from template.localnet.network import make_hotkey
from template.store.store import Store
from tests.fixtures.faulty_hub import FaultKind, HubFault, set_faults
from tests.fixtures.network import SMALL, VALIDATOR, Ended, Net, call_main, load_main, use_hub, write_training_args


def run(net: Net, **changed: object) -> Ended:
    """Run the entry point here for one round."""
    flags: dict[str, object] = {
        "netuid": 96,
        "subtensor.network": net.network,
        "wallet.path": net.parts.wallets,
        "wallet.name": "validator",
        "competition": net.parts.competition,
        "state_dir": net.parts.folder / "process",
        "training_args": write_training_args(net.parts.folder / "args.yaml"),
        "max_epochs": 1,
        "poll_seconds": 0.01,
        "wandb.off": True,
    }
    flags |= {name.replace("__", "."): value for name, value in changed.items()}
    parts = ((f"--{name}",) if value is True else (f"--{name}", value) for name, value in flags.items())
    return call_main(load_main(VALIDATOR), *(part for pair in parts for part in pair))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """A network that no wrong setting changes."""
    with Net(tmp_path_factory.mktemp("idle") / "network") as net, use_hub(net):
        make_hotkey(net.parts, "stranger")
        yield net


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "989aa79", "989AA7980e4cf806f80c7fef2b1adb7bc71aa306"])
def test_model_without_a_pinned_revision_is_refused(idle: Net, tmp_path: Path, revision: str | None) -> None:
    args = write_training_args(tmp_path / "moving.yaml")
    if revision is not None:
        args.write_text(f"{args.read_text()}  revision: '{revision}'\n")
    ended = run(idle, training_args=args)
    assert ended.status == 3, ended.logs
    assert "the revision of Qwen/Qwen2.5-0.5B-Instruct must be a full commit" in ended.logs[-1]


def test_default_model_is_pinned() -> None:
    assert load_training_args().is_pinned


def test_other_dtype_than_the_stated_one_is_refused(idle: Net, tmp_path: Path) -> None:
    args = write_training_args(tmp_path / "stated.yaml")
    args.write_text(f"{args.read_text()}  dtype: bfloat16\n  revision: '{'1' * 40}'\n")
    ended = run(idle, training_args=args, dtype="float32")
    assert ended.status == 3, ended.logs
    assert any("--dtype float32: the training arguments state bfloat16" in line for line in ended.logs), ended.logs


CONFIG_ERRORS: dict[str, tuple[dict[str, object], str]] = {
    "unregistered hotkey": ({"wallet__name": "stranger"}, "is not on netuid 96: register it, or use --offline"),
    "no such wallet": ({"wallet__name": "nobody"}, "--wallet.name"),
    "wrong netuid": ({"netuid": 95}, "--netuid"),
    "impossible netuid": ({"netuid": 70000}, "--netuid"),
    "no such chain": ({"subtensor__network": "/nowhere.sqlite3"}, "--subtensor.network"),
    "broken competition": ({"competition": "BROKEN"}, "BROKEN.yaml: unknown key 'benk'"),
    "no such evaluation set": ({"competition": "MOVED"}, "sample/pool has no such commit"),
    "no such competition": ({"competition": "/nowhere.yaml"}, "/nowhere.yaml: cannot be read"),
    "no such model": ({"model_path": "/nowhere"}, "--model_path /nowhere"),
    "no such training arguments": ({"training_args": "/nowhere.yaml"}, "/nowhere.yaml: cannot be read"),
    "no such device": ({"device": "abacus"}, "--device must be cpu, cuda or cuda:N, not 'abacus'"),
    "threshold beyond the epoch": ({"block_threshold": 360}, "--block_threshold"),
    "no samples": ({"miner_sample_size": 0}, "--miner_sample_size"),
    "no downloads": ({"max_downloads": 0}, "--max_downloads"),
    "no epochs": ({"max_epochs": 0}, "--max_epochs"),
    "seed too large": ({"lucky_num": 2**32}, "--lucky_num"),
    "two seeds": ({"lucky_num": 5, "lucky_num_from": "chain"}, "--lucky_num_from chain exclude each other"),
    "nothing kept": ({"keep_days": 0}, "--keep_days"),
    "rounds to no repo": ({"publish_rounds": "rounds"}, "--publish_rounds must be a Hub id like owner/name"),
    "unsigned rounds": ({"publish_rounds": "a/rounds", "offline": True}, "--publish_rounds does not go with --offline"),
    "an empty device": ({"device": "cpu,"}, "--device"),
    "no pause": ({"poll_seconds": "nan"}, "--poll_seconds"),
    "state that is a file": ({"state_dir": "/dev/null"}, "--state_dir"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_wrong_setting_is_named_in_one_line(idle: Net, tiny_model: Path, case: str) -> None:
    changed, sentence = CONFIG_ERRORS[case]
    for name, old, new in (("BROKEN", "bench", "benk"), ("MOVED", idle.competition.eval_commit, "f" * 40)):
        path = idle.parts.folder / f"{name}.yaml"
        path.write_text(idle.parts.competition.read_text().replace(old, new))
        changed = {flag: path if value == name else value for flag, value in changed.items()}
    ended = run(idle, **{"model_path": tiny_model, **changed})
    assert ended.status == 3, ended.logs
    (line,) = [line for line in ended.logs if "INFO" not in line]
    assert sentence in line and "ERROR" in line
    assert ended.output == "" and idle.calls() == []


def test_rejected_hub_token_has_its_own_exit_status(net: Net, tiny_model: Path) -> None:
    net.submit("alice", SMALL)
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=401, pattern="sample/pool"))
    ended = run(net, model_path=tiny_model)
    assert ended.status == 4, ended.logs
    assert "ERROR   the Hub does not accept our token" in ended.logs[-1]
    assert not any("alice" in line for line in ended.logs)


@pytest.mark.slow
def test_offline_needs_no_wallet(net: Net, tiny_model: Path) -> None:
    key = net.submit("alice", SMALL)
    net.align(Incentives().blocks_per_epoch)
    calls = net.calls()
    ended = run(net, model_path=tiny_model, wallet__name="nobody", offline=True)
    assert ended.status == 0, ended.logs
    with Store(net.parts.folder / "process" / "validator.sqlite3", is_read_only=True) as store:
        assert [(line.key, line.runs) for line in store.leaderboard(1)] == [(key, 1)]
    assert net.calls() == calls
