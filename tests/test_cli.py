"""The command lines: what they take, what they refuse by name, and how a run ends."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neurons import miner, validator
from scripts import compute_loss, status
from template import cli, files
from template.competition import Competition
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.rules.schedule import Policy
from template.telemetry import logging
from tests.fixtures.network import ROOT, call_main

VALIDATOR = ["--netuid", "96"]
MINER = [*VALIDATOR, "--hf_repo_id", "me/data", "--dataset_path", "data.jsonl"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and a token, which a miner needs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_local_me")
    return tmp_path


# How a run ends


def end(work: Callable[[argparse.Namespace], int]) -> tuple[int, str, list[str]]:
    parser = argparse.ArgumentParser()
    cli.add_logging_arguments(parser)
    ended = call_main(lambda argv: cli.run_main(parser, argv, work))
    return ended.status, ended.output, ended.logs


@pytest.mark.parametrize(
    ("error", "expected", "name"),
    [
        (ConfigError("--x is wrong"), 3, "ConfigError"),
        (HostError("no disk"), 4, "HostError"),
        (RemoteError("no hub", 5.0), 5, "RemoteError"),
        (SubmissionError(Reason.EMPTY, "no rows"), 6, "SubmissionError"),
        (SubnetError("other"), 1, "SubnetError"),
    ],
)
def test_an_error_ends_the_run_with_its_status_and_one_line(error: Exception, expected: int, name: str) -> None:
    def work(_: argparse.Namespace) -> int:
        raise error

    code, output, logs = end(work)
    assert (code, output) == (expected, "")
    (line,) = logs
    assert line.endswith(f"{name}: {error}")
    assert " ERROR " in line


def test_an_error_of_many_lines_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("id: 1\n  repo: [\n")
    code, _, logs = end(lambda _: int(bool(cli.read_competition(argparse.Namespace(competition=tmp_path / "c.yaml")))))
    assert code == 3
    (line,) = logs
    assert "c.yaml" in line
    assert "line 2" in line


def test_hostile_text_in_an_error_is_not_read_as_a_format() -> None:
    def work(_: argparse.Namespace) -> int:
        raise ConfigError("{0.__class__} {} <red>%s</red>")

    assert end(work)[2][0].endswith("ConfigError: {0.__class__} {} <red>%s</red>")


def test_the_status_of_a_run_without_an_error_is_its_own() -> None:
    assert end(lambda _: 7) == (7, "", [])


def test_an_interrupted_run_says_so() -> None:
    def work(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    code, _, (line,) = end(work)
    assert code == 128 + signal.SIGINT
    assert line.endswith("interrupted")


def test_a_bug_is_no_named_failure() -> None:
    def work(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        end(work)


# What is taken


def test_the_validators_flags_and_their_defaults() -> None:
    args = validator.build_parser().parse_args(VALIDATOR)
    assert (args.netuid, args.network) == (96, "finney")
    assert (args.wallet_name, args.wallet_hotkey, args.wallet_path) == (
        "default",
        "default",
        Path("~/.bittensor/wallets"),
    )
    assert validator.make_policy(args) == Policy(
        blocks_per_epoch=360,
        block_threshold=50,
        miner_sample_size=10,
        miner_duplicate_sample_size=50,
        sets_weights=True,
        max_rounds=None,
    )
    assert {args.cache_dir, args.data_dir, args.eval_data_dir, args.competition, args.model_path, args.lucky_num} == {
        None
    }
    assert not (args.is_debug or args.is_trace or args.offline or args.dont_set_weights)


def test_every_flag_of_the_validator_is_taken() -> None:
    words = (
        "--netuid 7 --wallet.name n --wallet.hotkey h --wallet.path /w --subtensor.network test --cache_dir c"
        " --data_dir d --eval_data_dir e --blocks_per_epoch 100 --miner_sample_size 1 --miner_duplicate_sample_size 2"
        " --block_threshold 0 --logging.debug --logging.trace --max_epochs 3 --competition f --model_path m"
        " --training_args t --state_dir s --receipt_dir r --lucky_num 0"
    )
    args = validator.build_parser().parse_args(words.split())
    assert (args.netuid, args.network, args.wallet_name, args.wallet_hotkey) == (7, "test", "n", "h")
    folders = (args.wallet_path, args.cache_dir, args.data_dir, args.eval_data_dir, args.model_path, args.training_args)
    assert folders == (Path("/w"), Path("c"), Path("d"), Path("e"), Path("m"), Path("t"))
    assert validator.make_policy(args) == Policy(
        blocks_per_epoch=100,
        block_threshold=0,
        miner_sample_size=1,
        miner_duplicate_sample_size=2,
        sets_weights=True,
        max_rounds=3,
    )
    assert args.is_debug
    assert args.is_trace
    assert args.lucky_num == 0


@pytest.mark.parametrize("mode", ["--offline", "--dont_set_weights"])
def test_either_mode_keeps_weights_off_the_chain(mode: str) -> None:
    args = validator.build_parser().parse_args([*VALIDATOR, mode])
    assert not validator.make_policy(args).sets_weights


def test_each_network_subnet_and_hotkey_has_a_state_of_its_own() -> None:
    def folder(*words: str) -> Path:
        return validator.default_state_dir(validator.build_parser().parse_args([*VALIDATOR, *words]))

    folders = [folder(), folder("--netuid", "97"), folder("--wallet.name", "x"), folder("--wallet.hotkey", "x")]
    folders += [folder("--subtensor.network", name) for name in ("test", "ws://127.0.0.1:9944", "sim:/tmp/c.sqlite3")]
    assert len(set(folders)) == len(folders)
    assert {one.parent for one in folders} == {cli.DEFAULT_STATE_DIR}


def test_the_miners_flags() -> None:
    args = miner.build_parser().parse_args([*MINER, "--wallet.name", "n", "--subtensor.network", "sim:/x"])
    assert (args.hf_repo_id, args.dataset_path, args.netuid) == ("me/data", Path("data.jsonl"), 96)
    assert (args.wallet_name, args.wallet_hotkey, args.network) == ("n", "default", "sim:/x")
    assert (args.model_path, args.competition, args.poll_seconds) == (None, None, 6.0)


def test_the_scripts_flags_and_their_defaults() -> None:
    args = compute_loss.build_parser().parse_args(["--dataset_path", "d"])
    assert args.dataset_path == Path("d")
    assert args.repeats is None, "one, or five to compare"
    nothing = "hf_repo_id revision verify eval_data_dir lucky_num training_args receipt_dir model_path competition"
    assert {name: getattr(args, name) for name in nothing.split()} == dict.fromkeys(nothing.split())
    assert not (args.check or args.is_json or args.is_debug or args.is_trace)
    words = (
        "--hf_repo_id R --revision C --eval_data_dir e --lucky_num 5 --repeats 3 --training_args t --check --json"
        " --receipt_dir r --verify v --model_path m --competition c --cache_dir d"
    )
    args = compute_loss.build_parser().parse_args(words.split())
    assert (args.hf_repo_id, args.revision, args.lucky_num, args.repeats) == ("R", "C", 5, 3)
    assert args.check
    assert args.is_json


@pytest.mark.parametrize("module", [validator, miner, compute_loss, status], ids=lambda module: module.__name__)
def test_help_names_every_flag_with_a_word_on_it(module: object) -> None:
    parser: argparse.ArgumentParser = module.build_parser()  # type: ignore[attr-defined]
    assert [action.dest for action in parser._actions if not action.help] == []
    assert module.__doc__ and module.__doc__ in parser.format_help()


# What is refused


def refuse(main: Callable[[list[str]], int], *words: str) -> str:
    """The one line of a refusal with status 3."""
    ended = call_main(main, *words)
    assert (ended.status, ended.output) == (3, ""), ended
    (line,) = ended.logs
    assert "ConfigError: " in line
    return line.partition("ConfigError: ")[2]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--blocks_per_epoch", "0"),
        ("--blocks_per_epoch", "-5"),
        ("--miner_sample_size", "0"),
        ("--miner_duplicate_sample_size", "0"),
        ("--max_epochs", "0"),
        ("--block_threshold", "-1"),
        ("--block_threshold", "360"),
        ("--lucky_num", "-1"),
        ("--lucky_num", "4294967296"),
        ("--poll_seconds", "0"),
        ("--poll_seconds", "nan"),
        ("--competition", "missing.yaml"),
        ("--training_args", "missing.yaml"),
        ("--state_dir", "/dev/null/x"),
        ("--data_dir", "/dev/null/x"),
        ("--wallet.name", "nobody"),
        ("--wallet.hotkey", "../up"),
    ],
)
def test_the_validator_refuses_a_bad_value_by_the_name_of_its_flag(home: Path, flag: str, value: str) -> None:
    told = refuse(validator.main, *VALIDATOR, flag, value)
    assert (value if value.endswith(".yaml") else flag) in told


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--netuid", "0"), ("--netuid", "65536"), ("--subtensor.network", "nowhere"), ("--subtensor.network", "ws://")],
)
def test_a_chain_that_cannot_be_is_refused_by_the_name_of_its_flag(flag: str, value: str) -> None:
    assert flag in refuse(validator.main, *VALIDATOR, "--offline", flag, value)


def test_a_local_chain_that_is_not_there_is_refused_and_not_made(home: Path) -> None:
    told = refuse(validator.main, *VALIDATOR, "--offline", "--subtensor.network", f"sim:{home}/none.sqlite3")
    assert "none.sqlite3" in told
    assert not (home / "none.sqlite3").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--poll_seconds", "-1"), ("--work_dir", "/dev/null/x"), ("--wallet.hotkey", "nobody")],
)
def test_the_miner_refuses_a_bad_value_by_the_name_of_its_flag(flag: str, value: str) -> None:
    assert flag in refuse(miner.main, *MINER, "--yes", "--subtensor.network", "ws://127.0.0.1:9", flag, value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--dataset_path", "d", "--hf_repo_id", "R", "--revision", "C"],
        ["--hf_repo_id", "R"],
        ["--dataset_path", "d", "--revision", "C"],
        ["--dataset_path", "d", "--repeats", "0"],
        ["--dataset_path", "d", "--lucky_num", "-1"],
        ["--dataset_path", "d", "--lucky_num", "x"],
        ["--dataset_path", "d", "--dtype", "float16"],
        ["--dataset_path", "d", "--unheard_of"],
    ],
    ids=" ".join,
)
def test_the_script_refuses_what_does_not_go_together(words: list[str]) -> None:
    ended = call_main(compute_loss.main, *words)
    assert (ended.status, ended.output) == (2, "")
    flags = [word for word in words if word.startswith("--")] or ["--dataset_path"]
    assert any(flag in ended.logs[-1] for flag in flags)


@pytest.mark.parametrize("main", [validator.main, miner.main, status.main])
def test_what_is_required_is_asked_for_by_name(main: Callable[[list[str]], int]) -> None:
    ended = call_main(main)
    assert ended.status == 2
    assert "required: --" in ended.logs[-1]


# What is built


def test_without_a_file_the_competition_is_the_subnets_own(tmp_path: Path) -> None:
    assert cli.read_competition(argparse.Namespace(competition=None)) == Competition.from_defaults()


def test_a_scorer_is_what_the_flags_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*VALIDATOR, "--model_path", "m", "--device", "cpu", "--dtype", "float32"]
    args = validator.build_parser().parse_args(words)
    evaluator = cli.make_evaluator(args, Competition.from_defaults(), tmp_path / "eval", None)
    assert (evaluator.model_path, evaluator.device, evaluator.dtype) == (tmp_path / "m", "cpu", "float32")
    assert evaluator.training_args.model_id == "Qwen/Qwen2.5-1.5B-Instruct"
    plain = cli.make_evaluator(validator.build_parser().parse_args(VALIDATOR), evaluator.competition, tmp_path, None)
    assert plain.model_path is plain.device is plain.dtype is None


def test_a_folder_is_made_where_it_was_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert files.check_folder(Path("~/a/b"), "--x") == home / "a" / "b"
    assert files.check_folder(Path("c"), "--x") == home / "c"
    assert (home / "a" / "b").is_dir()
    (home / "file").write_text("")
    with pytest.raises(ConfigError, match="--x file: cannot create the folder: File exists"):
        files.check_folder(Path("file"), "--x")


def test_the_operators_own_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    logging.quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_help_is_told_without_loading_a_model_or_a_client() -> None:
    code = (
        "import sys\n"
        "from neurons import miner, validator\n"
        "from scripts import compute_loss, status\n"
        "for module in (miner, validator, compute_loss, status): module.build_parser().format_help()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'bittensor', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
