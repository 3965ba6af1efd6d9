"""What the README promises is held against the code: its commands, its files, its tables."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from template.competition import Competition
from template.errors import ConfigError, HostError, Reason

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str, page: str = README) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every command line of every page, continuation lines joined and comments dropped."""
    fenced = [block for page in PAGES for block in blocks("bash", page)]
    indented = [line for page in PAGES for line in re.findall(r"^ {4}python (?:.*\\\n)*.*$", page, flags=re.MULTILINE)]
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_commands() -> list[list[str]]:
    found = [words[1:] for words in commands() if words[0] in ("python", ".venv/bin/python")]
    return [words for words in found if words[0].endswith(".py")]


@pytest.mark.parametrize("words", python_commands(), ids=lambda words: " ".join(words)[:60])
def test_every_python_command_is_accepted_by_its_own_parser(words: list[str]) -> None:
    module = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
    module.build_parser().parse_args(words[1:])


def test_the_first_block_is_the_two_commands() -> None:
    assert [shlex.split(line, comments=True) for line in blocks("bash")[0].splitlines()] == [
        ["bash", "scripts/quickstart.sh"],
        ["bash", "scripts/test.sh"],
    ]


def test_every_file_it_runs_or_names_exists() -> None:
    named = {word for words in commands() for word in words if re.fullmatch(r"[\w./-]+\.(sh|py|js)", word)}
    assert {"scripts/quickstart.sh", "contrib/ecosystem.config.js"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_its_competition_file_is_the_default_competition() -> None:
    (text,) = blocks("yaml")
    assert Competition.from_mapping(yaml.safe_load(text), "README") == Competition.from_defaults()


def test_every_reason_a_validator_can_give_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", README))
    assert {str(reason) for reason in Reason} - explained == set()


def test_the_exit_statuses_are_those_of_the_errors() -> None:
    assert f"| 2, {ConfigError.exit_code} |" in README
    assert f"| {HostError.exit_code} | this machine failed" in README


def test_the_example_row_is_a_row() -> None:
    from template.data.rows import SUBMISSION_LIMITS, parse_rows

    (text,) = blocks("json")
    assert len(parse_rows(text.encode(), name="README", limits=SUBMISSION_LIMITS)) == 1


def test_every_test_that_the_threat_model_names_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 30
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named if (ROOT / file).is_file()}
    assert [f"{file}::{test}" for file, test in named if f"def {test}" not in texts.get(file, "")] == []
