"""Test that a running validator and miner expose no more than they must.

One real run of each, under umask 0 and with secrets in the environment, observed from the kernel.
"""

import ast
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loguru import logger

from template import cli, files
from template.competition import Competition
from template.config import load_training_args
from template.errors import ConfigError, HostError
from template.localnet.hub.store import upload_files
from template.miner.draft import open_journal
from template.miner.journal import Journal
from template.store.store import Store
from template.telemetry.logging import configure_logging
from template.telemetry.redaction import without_secrets
from template.workers import messages, worker
from template.workers.executor import Evaluator
from tests.fixtures.canaries import ENVIRONMENT, hub_token, search
from tests.fixtures.logs import log_lines
from tests.fixtures.miner import configure
from tests.fixtures.network import MINER, SMALL, VALIDATOR, Net, Process, write_dataset, write_training_args
from tests.fixtures.processes import Watch, Witness
from tests.fixtures.source import PRODUCT, parse

pytestmark = pytest.mark.slow


# Startup code of each process: records every class that is looked up for a pickle, and the caller.
HOOK = """
import os, sys
def record(event, arguments):
    if event == "pickle.find_class":
        frame, files = sys._getframe(), []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        with open(LOOKUPS, "a") as lookups:
            lookups.write(repr((sys.argv[:1], arguments, files[:4])) + "\\n")
sys.addaudithook(record)
with open(LOOKUPS + "-by", "a") as lookups:
    lookups.write(repr(sys.orig_argv) + "\\n")
"""


@dataclass
class Seen:
    """Files and observations of both runs."""

    net: Net
    state: Path
    work: Path
    log: Path
    pickles: Path
    validator: Witness
    miner: Witness
    opened: set[tuple[str, str]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("secrets")
    with Net(folder / "network", ["alice"]) as net:
        state, work, log = folder / "state", folder / "work", folder / "log.jsonl"
        # As an earlier version left it, under a umask of nothing.
        state.mkdir()
        state.chmod(0o777)
        # A model that only the owner of the validator's token may read.
        model = {path.name: path for path in tiny_model.iterdir()}
        commit = upload_files(net.hub.store.root, "Qwen/Qwen2.5-0.5B-Instruct", model, "model", private=True)
        args = write_training_args(folder / "args.yaml")
        args.write_text(f"{args.read_text()}  revision: '{commit}'\n")
        shared = ("--training_args", args, "--poll_seconds", "0.05")
        mine = ("--dataset_path", write_dataset(folder / "mine", SMALL), "--hf_repo_id", "alice/data", "--yes")
        rounds = ("--blocks_per_epoch", "20", "--block_threshold", "5", "--max_epochs", "1", "--state_dir", state)
        # The Hub's library makes lock files that a group can write.
        rounds += ("--cache_dir", folder / "cache")
        hook, pickles = folder / "hook", folder / "pickles"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(f"LOOKUPS = {str(pickles)!r}\n{HOOK}")
        wallets = Watch(net.parts.wallets)
        miner, validator = Witness(), Witness()
        for script, arguments, name, user, witness in (
            (MINER, (*mine, "--work_dir", work, "--model_path", tiny_model), "alice", "alice", miner),
            (VALIDATOR, (*rounds, "--logging.trace", "--logging.file", log), "validator", "Qwen", validator),
        ):
            environment = {**net.environment(user), "WANDB_MODE": "offline"}
            environment["PYTHONPATH"] = f"{hook}:{environment['PYTHONPATH']}"
            before = os.umask(0)
            try:
                process = Process(script, *net.chain_arguments(name), *shared, *arguments, env=environment)
            finally:
                os.umask(before)
            with process, witness.watching(process.pid):
                assert process.finish() == 0, process.logs[-20:]
            net.align(20)
        opened = wallets.events()
        wallets.close()
        yield Seen(net, state, work, log, pickles, validator, miner, opened)


def test_both_ran_and_left_what_is_looked_at_below(seen: Seen) -> None:
    with Store(seen.state / "validator.sqlite3", is_read_only=True) as store:
        assert [line.loss is not None for line in store.leaderboard(1)] == [True]
    for pattern in ("receipts/*.json", "rounds/*.jsonl", "wandb/**/*.wandb", "eval_data/*.jsonl"):
        assert list(seen.state.glob(pattern)), pattern
    assert list(seen.work.glob("commitment-*.json")) and seen.log.stat().st_size > 1000
    assert {"main", "template.workers.worker", "template.telemetry.wandb_run"} <= set(seen.validator.environments)
    assert any("core" in name for name in seen.validator.environments), "wandb's service"


def test_each_process_has_the_secrets_it_needs_and_no_other(seen: Seen) -> None:
    environments = {
        name: {variable.split(b"=")[0].decode() for variable in variables if b"=" in variable}
        for name, variables in seen.validator.environments.items()
    }
    secret = {*ENVIRONMENT, "HF_TOKEN"}
    needed = {"main": secret, "template.telemetry.wandb_run": {"WANDB_API_KEY"}}
    for name, variables in environments.items():
        allowed = {"WANDB_API_KEY"} if "core" in name else needed.get(name, set())
        assert variables & secret == allowed & variables, name
    assert environments["template.workers.worker"] & secret == set()
    assert secret <= environments["main"], "the run had them to give away"


def test_no_command_line_holds_a_secret(seen: Seen) -> None:
    lines = b"".join(seen.validator.command_lines | seen.miner.command_lines)
    assert b"template.workers.worker" in lines and b"miner.py" in lines
    for value in (*ENVIRONMENT.values(), hub_token("Qwen"), hub_token("alice")):
        assert value.encode() not in lines


def test_nothing_listens_on_the_network(seen: Seen) -> None:
    assert seen.validator.listeners == set() and seen.miner.listeners == set()


def test_no_file_holds_a_secret_even_with_trace_logs(seen: Seen) -> None:
    assert search([seen.state, seen.work, seen.log.parent]) == []
    text = b"".join(
        path.read_bytes() for path in (seen.log, *seen.state.rglob("*"), *seen.work.rglob("*")) if path.is_file()
    )
    for path in seen.net.parts.wallets.glob("*/hotkeys/default"):
        key = json.loads(path.read_text())
        for name in ("secretSeed", "secretPhrase", "privateKey"):
            value = str(key[name]).removeprefix("0x")
            assert len(value) > 30 and value.encode() not in text, f"{name} of {path}"


def test_nothing_is_unpickled_in_any_process_of_the_two(seen: Seen) -> None:
    heard = Path(f"{seen.pickles}-by").read_text()
    for process in ("miner.py", "validator.py", "template.workers.worker", "template.telemetry.wandb_run"):
        assert process in heard, "the hook was there"
    assert not seen.pickles.exists(), seen.pickles.read_text()[:2000]


def test_the_hook_hears_of_a_pickle(tmp_path: Path) -> None:
    log_file = tmp_path / "lookups"
    (tmp_path / "sitecustomize.py").write_text(f"LOOKUPS = {str(log_file)!r}\n{HOOK}")
    code = "import pickle, pathlib; pickle.loads(pickle.dumps(pathlib.Path('x')))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "pathlib" in log_file.read_text()


def test_only_the_hotkey_is_opened_and_no_wallet_is_written(seen: Seen) -> None:
    mine = {str(seen.net.parts.wallets / name / "hotkeys" / "default") for name in ("alice", "validator")}
    read = {path for what, path in seen.opened if what in ("open", "read")}
    assert mine <= read <= mine, read
    assert {what for what, _ in seen.opened} <= {"open", "read"}
    assert all(Path(path).parents[1].joinpath("coldkey").is_file() for path in mine), "there was one to open"


def test_written_files_are_private_under_any_umask(seen: Seen) -> None:
    # Published by the validator, or public on the Hub, and behind a closed folder here.
    patterns = ("rounds/*.jsonl", "data/**/*", "eval_data/*", "*/eval_data/*", "cache/hub-files/**/*")
    public = {path for top in (seen.state, seen.work) for pattern in patterns for path in top.glob(pattern)}
    assert public
    for top in (seen.state, seen.work):
        assert stat.S_IMODE(top.stat().st_mode) == 0o700
        for path in top.rglob("*"):
            mode = path.lstat().st_mode
            others = 0o044 if path in public and stat.S_ISREG(mode) else 0
            if not stat.S_ISLNK(mode):
                assert stat.S_IMODE(mode) & 0o077 & ~others == 0, f"{path}: {stat.S_IMODE(mode):o}"
    assert stat.S_IMODE(seen.log.stat().st_mode) == 0o600


def test_none_of_the_processes_leaves_a_core_dump(seen: Seen) -> None:
    assert seen.validator.core_bytes == seen.miner.core_bytes == {"0"}


def test_the_file_of_a_sealed_commitment_is_its_owners_alone(net: Net) -> None:
    before = os.umask(0)
    try:
        with open_journal(configure(net), net.chain("alice")) as journal:
            journal.save_dataset(b"not public yet", "digest")
            copy = journal.dataset_copy("digest")
            assert stat.S_IMODE(copy.stat().st_mode) == 0o600
            journal.delete_dataset("digest")
            assert not copy.exists()
    finally:
        os.umask(before)


def test_a_worker_forgets_the_token_before_it_is_given_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with worker.hub_token_env("hf_x"):
        assert os.environ["HF_TOKEN"] == "hf_x"
    assert "HF_TOKEN" not in os.environ
    with pytest.raises(ConfigError), worker.hub_token_env("hf_x"):
        raise ConfigError("no such model")
    assert "HF_TOKEN" not in os.environ
    evaluator = Evaluator(
        competition=Competition.from_defaults(), training_args=load_training_args(), eval_data_dir=Path("/eval")
    )
    setup = messages.Setup(evaluator=evaluator, log_level="INFO", hub_token="hf_x")
    assert "hf_x" not in repr(setup) and messages.decode_command(messages.encode(setup)) == setup


def test_a_child_gets_only_the_named_secrets() -> None:
    public = {"PATH": "d", "HF_HOME": "f"}
    environment = {**public, "HF_TOKEN": "a", "RAY_AUTH_TOKEN": "b", "BT_PW_X": "c", "wandb_api_key": "e"}
    assert without_secrets(environment) == public
    assert without_secrets(environment, keep=["RAY_AUTH_TOKEN"]) == {**public, "RAY_AUTH_TOKEN": "b"}


def check(folder: Path) -> Path:
    return files.check_private_folder(folder, "--state_dir", marks=("validator.sqlite3", *cli.WORK_DIR_MARKS))


@pytest.mark.parametrize(
    ("content", "mode", "closed_mode"),
    [
        ([], 0o777, 0o700),
        (["validator.sqlite3", "log"], 0o777, 0o700),
        (["commitment-x.json"], 0o775, 0o700),
        (["0123456789ab"], 0o775, 0o700),
        (["letters"], 0o755, 0o755),
        (["letters"], 0o777, None),
        (["letters"], 0o1777, None),
        (["letters"], 0o770, None),
        (["validator.sqlite3"], 0o1777, None),
    ],
)
def test_a_folder_open_to_others_is_closed_or_refused(
    tmp_path: Path, content: list[str], mode: int, closed_mode: int | None
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    for name in content:
        (folder / name).touch()
    folder.chmod(mode)
    with log_lines() as logged:
        if closed_mode is None:
            with pytest.raises(ConfigError, match=r"--state_dir .*state: other users can write to this folder"):
                check(folder)
        else:
            assert check(folder) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == (mode if closed_mode is None else closed_mode)
    assert any("closed a folder to other users" in line for line in logged) == (closed_mode == 0o700)


def test_a_group_folder_of_root_is_used_a_public_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some platforms mount a volume so for a process that is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root can make one")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    tmp_path.chmod(0o2770)
    assert check(tmp_path) == tmp_path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2770
    tmp_path.chmod(0o2777)
    with pytest.raises(ConfigError, match="other users can write to this folder"):
        check(tmp_path)


def test_nothing_of_another_users_is_used(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    folder, log = tmp_path / "state", tmp_path / "log"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path in (folder, link):
        with pytest.raises(ConfigError, match="belongs to another user"):
            check(path)
    log.touch()
    os.chown(log, 12345, 12345)
    configure_logging(file=log)
    logger.warning("a line of this validator")
    logger.remove()
    assert log.stat().st_size == 0


def test_a_log_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    (tmp_path / "log").chmod(0o666)
    configure_logging(file=tmp_path / "log")
    logger.warning("a line of this validator")
    logger.remove()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "validator.sqlite3.lock").symlink_to(victim)
    with pytest.raises(HostError):
        Store(tmp_path / "validator.sqlite3")
    (tmp_path / "commitment.lock").symlink_to(victim)
    with pytest.raises(HostError):
        Journal(tmp_path, "commitment")
    assert victim.read_text() == "precious"


def test_no_log_shows_the_values_of_variables() -> None:
    """loguru's `diagnose`, on by default, prints variables of every frame."""
    calls = [
        (path.name, {word.arg: ast.unparse(word.value) for word in node.keywords})
        for path, tree in parse(*PRODUCT).items()
        if "localnet" not in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.add"
    ]
    assert len(calls) >= 3
    assert [call for call in calls if (call[1].get("diagnose"), call[1].get("backtrace")) != ("False", "False")] == []
