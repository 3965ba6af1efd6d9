"""Command lines: flags and defaults, refused values, exit status."""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from neurons import miner, validator
from scripts import audit, calibrate, check_dataset, compute_loss, doctor, leaderboard, select_rows, status, verdict
from template import cli, files
from template.competition import Competition, Incentives
from template.config import load_competition
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.rules.schedule import Policy
from template.telemetry import logging
from tests.fixtures.network import ROOT, call_main

PROGRAMS = [
    validator,
    miner,
    doctor,
    audit,
    calibrate,
    check_dataset,
    compute_loss,
    leaderboard,
    select_rows,
    status,
    verdict,
]
# The variables that btcli reads, each with its argument here.
BTCLI = {
    "BT_NETWORK": "network",
    "BT_WALLET": "wallet_name",
    "BT_WALLET_HOTKEY": "wallet_hotkey",
    "BT_WALLET_PATH": "wallet_path",
}
VALIDATOR = ["--netuid", "96"]
MINER = [*VALIDATOR, "--hf_repo_id", "me/data", "--dataset_path", "data.jsonl"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a Hub token for the miner."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_local_me")
    for name in BTCLI:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def end(work: Callable[[argparse.Namespace], int]) -> tuple[int, str, list[str]]:
    parser = cli.make_parser("test", None)
    cli.add_logging_arguments(parser)
    ended = call_main(lambda argv: cli.run_main(parser, argv, work))
    return ended.status, ended.output, ended.logs


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ConfigError("--x is wrong"), 3, "ERROR   --x is wrong"),
        (HostError("no disk"), 4, "ERROR   no disk"),
        (RemoteError("no hub", 5.0), 5, "ERROR   no hub"),
        (SubmissionError(Reason.EMPTY, "no rows"), 6, "ERROR   rejected (empty): no rows"),
        (SubnetError("other"), 1, "ERROR   other"),
        (ConfigError("{0.__class__} {} <red>%s</red>"), 3, "ERROR   {0.__class__} {} <red>%s</red>"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted"),
    ],
)
def test_error_ends_the_run_with_its_status_and_one_line(error: BaseException, expected: int, message: str) -> None:
    def work(_: argparse.Namespace) -> int:
        raise error

    code, output, (line,) = end(work)
    assert (code, output) == (expected, "")
    assert line.endswith(message)


def test_error_of_many_lines_is_logged_as_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("id: 1\n  repo: [\n")
    code, _, (line,) = end(lambda _: int(bool(load_competition(tmp_path / "c.yaml"))))
    assert code == 3 and "c.yaml" in line and "line 2" in line


def test_run_without_an_error_returns_its_status() -> None:
    assert end(lambda _: 7) == (7, "", [])


def test_bug_is_raised_with_its_traceback() -> None:
    def work(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        end(work)


def parse(parser: argparse.ArgumentParser, words: str) -> tuple[argparse.Namespace, dict[str, object]]:
    """Parse a command line; return the arguments and their values by name."""
    args = parser.parse_args(words.split())
    return args, vars(args)


def test_validator_defaults() -> None:
    args, values = parse(validator.build_parser(), "--netuid 96")
    folder = Path.home() / ".bittensor" / "wallets"
    wallet = {"wallet_name": "default", "wallet_hotkey": "default", "wallet_path": folder}
    unset = dict.fromkeys(["cache_dir", "data_dir", "eval_data_dir", "competition", "model_path", "lucky_num"])
    modes = dict.fromkeys(["is_debug", "is_trace", "offline", "dont_set_weights"], False)
    assert values.items() >= {"netuid": 96, "network": "finney", **wallet, **unset, **modes}.items()
    policy = Policy(blocks_per_epoch=360, block_threshold=50, miner_duplicate_sample_size=256)
    assert validator.make_incentives(args) == Incentives()
    assert validator.make_policy(args, Incentives()) == dataclasses.replace(policy, sets_weights=True, max_rounds=None)


@pytest.mark.parametrize("program", [validator, miner])
def test_chain_defaults_come_from_btclis_variables(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    words = MINER if program is miner else VALIDATOR
    before = vars(program.build_parser().parse_args(words))
    for name in BTCLI:
        monkeypatch.setenv(name, "")
    assert vars(program.build_parser().parse_args(words)) == before, "btcli skips empty variables"
    for name in BTCLI:
        monkeypatch.setenv(name, f"/{name}")
    values = vars(program.build_parser().parse_args(words))
    assert {name: str(values[argument]) for name, argument in BTCLI.items()} == {name: f"/{name}" for name in BTCLI}
    assert program.build_parser().parse_args([*words, "--wallet.name", "given"]).wallet_name == "given"


def test_variables_are_those_of_the_locked_btcli() -> None:
    from bittensor.cli import main as btcli
    from typer.main import get_command

    named = {parameter.envvar for parameter in get_command(btcli.app).params}
    assert set(BTCLI) <= named


@pytest.mark.parametrize("program", [check_dataset, compute_loss])
def test_reader_takes_btclis_wallet_unless_a_hotkey_is_named(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--netuid", "96", *(["--dataset_path", "d"] if program is check_dataset else ["--as_validator"])]
    parser = program.build_parser()
    monkeypatch.setenv("BT_WALLET", "mine")
    assert cli.has_wallet(parser.parse_args(words))
    args = parser.parse_args([*words, "--hotkey", "5Gr"])
    program.check_arguments(parser, args)
    assert not cli.has_wallet(args)
    monkeypatch.delenv("BT_WALLET")
    assert not cli.has_wallet(parser.parse_args(words))


def test_validator_flags() -> None:
    args, values = parse(
        validator.build_parser(),
        "--netuid 7 --wallet.name n --wallet.hotkey h --wallet.path /w --subtensor.network test --cache_dir c"
        " --data_dir d --eval_data_dir e --blocks_per_epoch 100 --miner_sample_size 1 --miner_duplicate_sample_size 2"
        " --block_threshold 0 --logging.debug --logging.trace --max_epochs 3 --model_path m"
        " --training_args t --state_dir s --receipt_dir r --lucky_num 0",
    )
    paths = {"wallet_path": "/w", "cache_dir": "c", "data_dir": "d", "eval_data_dir": "e"}
    paths |= {"model_path": "m", "training_args": "t", "state_dir": "s", "receipt_dir": "r"}
    others = {"netuid": 7, "network": "test", "wallet_name": "n", "wallet_hotkey": "h", "lucky_num": 0}
    assert values.items() >= {name: Path(path) for name, path in paths.items()}.items()
    assert values.items() >= {**others, "is_debug": True, "is_trace": True}.items()
    incentives = validator.make_incentives(args)
    assert incentives == Incentives(blocks_per_epoch=100, slots=1)
    policy = Policy(blocks_per_epoch=100, block_threshold=0, miner_duplicate_sample_size=2)
    assert validator.make_policy(args, incentives) == dataclasses.replace(policy, max_rounds=3)


@pytest.mark.parametrize("mode", ["--offline", "--dont_set_weights"])
def test_offline_modes_set_no_weights(mode: str) -> None:
    args = validator.build_parser().parse_args([*VALIDATOR, mode])
    assert not validator.make_policy(args, Incentives()).sets_weights


def test_state_dir_is_unique_to_network_subnet_and_hotkey() -> None:
    def folder(*words: str) -> Path:
        return validator.default_state_dir(validator.build_parser().parse_args([*VALIDATOR, *words]))

    folders = [folder(), folder("--netuid", "97"), folder("--wallet.name", "x"), folder("--wallet.hotkey", "x")]
    folders += [folder("--subtensor.network", name) for name in ("test", "ws://127.0.0.1:9944", "ws://127.0.0.1:9945")]
    assert len(set(folders)) == len(folders)
    assert {folder.parent for folder in folders} == {cli.DEFAULT_STATE_DIR}


def test_miner_flags() -> None:
    _, values = parse(miner.build_parser(), f"{' '.join(MINER)} --wallet.name n --subtensor.network ws://x:1")
    wallet = {"netuid": 96, "wallet_name": "n", "wallet_hotkey": "default", "network": "ws://x:1"}
    assert values.items() >= {"hf_repo_id": "me/data", "dataset_path": Path("data.jsonl"), **wallet}.items()


def test_compute_loss_flags_and_defaults() -> None:
    _, values = parse(compute_loss.build_parser(), "--dataset_path d")
    # repeats: one, or five to compare
    unset = (
        "hf_repo_id revision verify eval_data_dir lucky_num training_args receipt_dir model_path competition repeats"
    )
    modes = dict.fromkeys(["check", "is_json", "is_debug", "is_trace"], False)
    assert values.items() >= {"dataset_path": Path("d"), **dict.fromkeys(unset.split()), **modes}.items()


@pytest.mark.parametrize("module", PROGRAMS, ids=lambda module: module.__name__)
def test_help_describes_every_flag(module: object) -> None:
    parser: argparse.ArgumentParser = module.build_parser()  # type: ignore[attr-defined]
    assert [action.dest for action in parser._actions if not action.help] == []
    assert module.__doc__ and module.__doc__ in parser.format_help()


def refuse(main: Callable[[list[str]], int], *words: str) -> str:
    """Return the messages of a refusal with status 3."""
    ended = call_main(main, "--subtensor.network", "ws://127.0.0.1:9", *words)
    assert (ended.status, ended.output) == (3, ""), ended
    return "\n".join(line.partition(" ERROR   ")[2] for line in ended.logs)


OFFLINE = [*VALIDATOR, "--offline"]
UNREACHABLE = [*MINER, "--yes", "--subtensor.network", "ws://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("main", "words", "flag", "values"),
    [
        (validator.main, VALIDATOR, "--blocks_per_epoch", "0 -5"),
        (validator.main, VALIDATOR, "--miner_sample_size", "0"),
        (validator.main, VALIDATOR, "--miner_duplicate_sample_size", "0"),
        (validator.main, VALIDATOR, "--max_epochs", "0"),
        (validator.main, VALIDATOR, "--block_threshold", "-1 360"),
        (validator.main, VALIDATOR, "--lucky_num", "-1 4294967296"),
        (validator.main, VALIDATOR, "--poll_seconds", "0 nan"),
        (validator.main, VALIDATOR, "--competition", "missing.yaml"),
        (validator.main, VALIDATOR, "--training_args", "missing.yaml"),
        (validator.main, OFFLINE, "--state_dir", "/dev/null/x"),
        (validator.main, OFFLINE, "--data_dir", "/dev/null/x"),
        (validator.main, VALIDATOR, "--wallet.name", "nobody"),
        (validator.main, VALIDATOR, "--wallet.hotkey", "../up"),
        (validator.main, OFFLINE, "--netuid", "0 65536"),
        (validator.main, OFFLINE, "--subtensor.network", "nowhere ws://"),
        (miner.main, UNREACHABLE, "--poll_seconds", "-1"),
        (miner.main, UNREACHABLE, "--hf_repo_id", "no-owner"),
        (miner.main, UNREACHABLE, "--wallet.hotkey", "nobody"),
    ],
)
def test_bad_value_is_refused_by_its_flag(
    main: Callable[[list[str]], int], words: list[str], flag: str, values: str
) -> None:
    for value in values.split():
        assert (value if value.endswith(".yaml") else flag) in refuse(main, *words, flag, value)


@pytest.mark.parametrize("main", [validator.main, miner.main, status.main])
def test_missing_flag_is_named(main: Callable[[list[str]], int]) -> None:
    ended = call_main(main)
    assert ended.status == 2
    assert any("required: --" in line for line in ended.logs)


def test_evaluator_follows_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*VALIDATOR, "--model_path", "m", "--device", "cpu", "--dtype", "float32"]
    args = validator.build_parser().parse_args(words)
    evaluator = cli.make_evaluator(args, Competition.from_defaults(), tmp_path / "eval", None)
    assert (evaluator.model_path, evaluator.device, evaluator.dtype) == (tmp_path / "m", "cpu", "float32")
    assert evaluator.training_args.model_id == "Qwen/Qwen2.5-1.5B-Instruct"
    default = cli.make_evaluator(validator.build_parser().parse_args(VALIDATOR), evaluator.competition, tmp_path, None)
    assert default.model_path is default.device is default.dtype is None


def test_check_folder_creates_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert files.check_folder(Path("~/a/b"), "--x") == home / "a" / "b"
    assert files.check_folder(Path("c"), "--x") == home / "c"
    assert (home / "a" / "b").is_dir()
    (home / "file").write_text("")
    with pytest.raises(ConfigError, match="--x file: cannot create the folder: File exists"):
        files.check_folder(Path("file"), "--x")


def test_quiet_libraries_keeps_the_operators_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    logging.quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_help_loads_neither_torch_nor_a_client() -> None:
    code = (
        "import sys\n"
        "from neurons import miner, validator\n"
        "from scripts import audit, check_dataset, compute_loss, status\n"
        "modules = (miner, validator, audit, check_dataset, compute_loss, status)\n"
        "[module.build_parser().format_help() for module in modules]\n"
        "print(sorted({'torch', 'transformers', 'peft', 'bittensor', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
