"""The parser of every command: suggestions, `~` in paths, and all faults at once."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import bittensor as bt
import pytest

from neurons import miner, validator
from scripts import (
    audit,
    calibrate,
    check_dataset,
    compute_loss,
    doctor,
    leaderboard,
    select_rows,
    status,
    subnet,
    verdict,
)
from scripts.bench import profile, scaling, score
from template import cli
from template.arguments import suggest_flag
from template.errors import HostError, describe_error
from template.localnet import __main__ as localnet
from template.localnet.models.download import default_model_dir
from template.localnet.sample.__main__ import main as write_sample
from tests.fixtures.network import ROOT, call_main

NEURONS = [validator, miner, doctor]
READERS = [audit, calibrate, check_dataset, compute_loss, leaderboard, select_rows, status, verdict]
COMMANDS = [*NEURONS, *READERS, subnet, localnet, profile, scaling, score]
CHAIN = ["--netuid", "96", "--subtensor.network", "ws://127.0.0.1:9"]
MINER = [*CHAIN, "--hf_repo_id", "me/data", "--dataset_path", "data.jsonl"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home that is the current folder too, and nothing set for the Hub or the wallet."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "BT_NETWORK", "BT_WALLET", "BT_WALLET_HOTKEY", "BT_WALLET_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(main: Callable[[list[str]], int], *words: str, expected: int = 2) -> list[str]:
    """Return the messages of a wrong command line, without the usage."""
    ended = call_main(main, *words)
    assert (ended.status, ended.output) == (expected, ""), ended
    texts = [re.split(r": error: | ERROR   ", line)[-1] for line in ended.logs if re.search(r": error: | ERROR ", line)]
    assert len(set(texts)) == len(texts), "each fault once"
    return texts


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_unknown_flag_is_refused_with_its_right_name(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.build_parser()
    for action in parser._actions:
        flag = next((name for name in action.option_strings if name.startswith("--")), None)
        if flag is None:
            continue
        for wrong in {flag.upper(), re.sub("[_.]", "-", flag) + "-", flag[:-1] + flag[-1] * 2}:
            with pytest.raises(SystemExit):
                parser.parse_args([wrong, "1"])
            assert f"unknown argument {wrong}, did you mean {flag}?\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("--wallet", " or ".join(["--wallet.name", "--wallet.hotkey", "--wallet.path"])),
        ("--wallet-name", "--wallet.name"),
        ("--hotkey", "--wallet.hotkey"),
        ("--network", "--subtensor.network"),
        ("--subtensor.chain_endpoint", "--subtensor.network"),
        ("--logging.logging_dir", "--logging.file"),
        ("--poll", "--poll_seconds"),
        ("-netuid", "--netuid"),
        ("--netid", "--netuid"),
        ("--axon.port", None),
    ],
)
def test_flags_of_other_tools_are_recognized(word: str, suggested: str | None) -> None:
    flags = list(miner.build_parser()._option_string_actions)
    assert suggest_flag(word, flags) == (f", did you mean {suggested}?" if suggested else "")


def test_abbreviations_are_not_taken() -> None:
    assert errors(status.main, "--state", "x")[0] == "unknown argument --state, did you mean --state_dir?"


def test_misspelt_choices_get_a_suggestion() -> None:
    first, second = errors(validator.main, "--netuid", "96", "--offline", "--executor", "Ray", "--dtype", "float23")
    assert first.startswith("argument --executor: invalid choice: 'Ray' ") and first.endswith(", did you mean ray?")
    assert second.endswith(", did you mean float32?")
    (command,) = errors(subnet.main, "validater")
    assert command.endswith(", did you mean validator?")
    assert "did you mean" not in errors(subnet.main, "xyz")[0]


def test_doctor_reports_the_faults_of_both_command_lines() -> None:
    texts = errors(doctor.main, "--role", "minr", "--ports", "web", "--jso", "--netid", "96")
    assert [text.rpartition(", ")[2] for text in texts[:3]] == [
        "did you mean --json?", "did you mean --netuid?", "did you mean miner?",
    ]  # fmt: skip
    assert texts[3:] == ["argument --ports: invalid int value: 'web'", "the following arguments are required: --netuid"]
    assert "--reveal_blocks" in call_main(doctor.main, "--role", "miner", "--help").output


def test_doctor_names_all_that_its_neuron_lacks(home: Path) -> None:
    first, *others = errors(doctor.main, "--role", "miner", "--netuid", "96", "--competition", "gone.yaml")
    assert first == "the following arguments are required: --hf_repo_id, --dataset_path"
    assert [text.split(":")[0] for text in others] == [
        f"no hotkey at {home}/.bittensor/wallets/default/hotkeys/default", "no Hub token",
        "gone.yaml",
    ]  # fmt: skip


def test_stray_word_is_named() -> None:
    assert errors(status.main, "--state_dir", "x", "y") == ["unexpected word 'y'"]


def test_no_command_has_a_parser_of_its_own() -> None:
    # lock_hashes runs before any package is installed.
    files = [path for folder in ("neurons", "scripts", "template") for path in (ROOT / folder).rglob("*.py")]
    own = {path.name for path in files if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")}
    assert own - {"arguments.py"} == {"lock_hashes.py"}


def test_every_path_of_a_flag_is_expanded(home: Path) -> None:
    for command in COMMANDS:
        parser = command.build_parser()
        actions = [action for action in parser._actions if action.type is Path]
        required = [[action.option_strings[0], "1"] for action in parser._actions if action.required and action not in
                    actions and action.option_strings]  # fmt: skip
        words = [
            [f"{action.option_strings[0]}=~/x"] if action.nargs != 2 else [action.option_strings[0], "~/x", "~/x"]
            for action in actions
            if action.option_strings
        ]
        words += [["~/x"] for action in actions if not action.option_strings]
        if not actions:
            continue
        values = vars(parser.parse_args([word for group in [*required, *words] for word in group]))
        for action in actions:
            value = values[action.dest]
            assert {home / "x"} == set(value if isinstance(value, list) else [value]), action.dest


def test_tilde_in_words_that_may_be_paths_is_expanded(home: Path) -> None:
    (home / "rounds").mkdir()
    (home / "receipt.json").write_text("{}")
    for main, *words in (
        (verdict.main, "--hotkey", "5F", "--rounds=~/rounds"),
        (leaderboard.main, "--out=~/site", "--rounds=~/rounds"),
        (audit.main, "~/rounds"),
        (audit.main, "--from=~/rounds"),
    ):
        assert errors(main, *words, expected=3) == ["~/rounds: no round file, round-*.jsonl, in this folder or repo"]
    (text,) = errors(compute_loss.main, "--verify=~/receipt.json", expected=3)
    assert text.startswith(f"{home}/receipt.json: ") and "cannot be read" not in text
    assert sorted(path.name for path in home.iterdir() if "~" in path.name) == []


def test_default_paths_are_expanded(home: Path) -> None:
    args = check_dataset.build_parser().parse_args(["--dataset_path", "x", "--offline"])
    assert args.work_dir == home / ".dataset-subnet" / "miner"


def test_no_folder_named_tilde_is_made(home: Path) -> None:
    assert call_main(write_sample, "--out=~/sets").status == 0
    assert sorted(path.name for path in home.iterdir()) == ["sets"]


@pytest.mark.parametrize("variable", ["BT_WALLET_PATH", "TMPDIR", "XDG_CACHE_HOME"])
def test_paths_in_variables_are_expanded(home: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "~/place")
    parser = cli.make_parser("test", None)
    cli.add_chain_arguments(parser)
    cli.add_logging_arguments(parser)
    seen = {}

    def run(args: object) -> int:
        seen.update(BT_WALLET_PATH=args.wallet_path, TMPDIR=os.environ.get("TMPDIR"))  # type: ignore[attr-defined]
        return 0

    assert call_main(lambda argv: cli.run_main(parser, argv, run), "--netuid", "96").status == 0
    seen["XDG_CACHE_HOME"] = default_model_dir().parents[1]
    assert str(seen[variable]) == str(home / "place")


def make_wallet(home: Path) -> None:
    bt.Wallet("default", "default", path=str(home / ".bittensor/wallets")).create_new_hotkey(suppress=True)


def test_miner_names_all_that_is_missing(home: Path) -> None:
    words = ["--dataset_path", "gone.jsonl", "--competition", "gone.yaml", "--training_args", "none.yaml"]
    texts = errors(miner.main, *words)
    assert texts == [
        "the following arguments are required: --hf_repo_id, --netuid",
        f"no hotkey at {home}/.bittensor/wallets/default/hotkeys/default: see --wallet.name, --wallet.hotkey and"
        " --wallet.path",
        "no Hub token: set HF_TOKEN, or run `hf auth login`",
        "--dataset_path gone.jsonl: cannot be read: No such file or directory",
        "gone.yaml: cannot be read: No such file or directory",
        "none.yaml: cannot be read: No such file or directory",
    ]
    found = errors(miner.main, *words, "--hf_repo_id", "me/x", *CHAIN, expected=3)
    assert [text.partition(". What to do: ")[0] for text in found] == texts[1:]


@pytest.mark.parametrize(
    ("main", "words", "named"),
    [
        (
            validator.main,
            ["--model_path", "m", "--competition", "gone.yaml", "--lucky_num", "-1", "--keep_days", "0"],
            ["--netuid", "no hotkey at", "gone.yaml", "--model_path m", "--lucky_num", "--keep_days"],
        ),
        (
            compute_loss.main,
            ["--compare", "a.jsonl", "b.jsonl", "--competition", "gone.yaml", "--model_path", "m", "--repeats", "1"],
            ["--repeats must be at least 2", "--compare a.jsonl", "--compare b.jsonl", "gone.yaml", "--model_path m"],
        ),
        (
            compute_loss.main,
            ["--as_validator", "--wallet.name", "me", "--training_args", "gone.yaml"],
            ["--as_validator needs --netuid", "no hotkey at", "gone.yaml"],
        ),
        (
            check_dataset.main,
            ["--dataset_path", "gone.jsonl", "--wallet.name", "me", "--competition", "c.yaml"],
            ["expected --netuid", "--dataset_path gone.jsonl", "no hotkey at", "c.yaml"],
        ),
    ],
)
def test_all_faults_are_named_in_one_run(
    main: Callable[[list[str]], int], words: Sequence[str], named: Sequence[str]
) -> None:
    texts = errors(main, *words)
    assert [sum(name in text for text in texts) for name in named] == [1] * len(named) and len(texts) == len(named)


def test_missing_token_alone_is_the_machines_fault(home: Path) -> None:
    make_wallet(home)
    (home / "data.jsonl").write_text("")
    assert errors(miner.main, *MINER, expected=4) == ["no Hub token: set HF_TOKEN, or run `hf auth login`"]


def test_values_of_a_misspelt_flag_are_not_missed_twice() -> None:
    texts = errors(miner.main, *MINER, "--wallet.nam", "me")
    assert texts == ["unknown argument --wallet.nam, did you mean --wallet.name?"]


def test_error_in_words_has_no_class_but_for_a_bug() -> None:
    assert describe_error(HostError("no\ndisk")) == "no disk"
    assert describe_error(FileNotFoundError(2, "No such file", "x")) == "[Errno 2] No such file: 'x'"
    assert describe_error(KeyError("x")) == "unexpected KeyError: 'x'"
    assert describe_error(KeyboardInterrupt()) == "interrupted"
