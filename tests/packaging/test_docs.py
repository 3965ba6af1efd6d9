"""Compare README, CONTRIBUTING and docs/ with the code."""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from template import __version__
from template.competition import Competition, Incentives
from template.constants import WEIGHTS_VERSION
from template.errors import Reason

ROOT = Path(__file__).resolve().parents[2]
PATHS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}


def blocks(language: str, page: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Split every command line of every page into words, without comments."""
    fenced = [block for page in PAGES for block in blocks("bash", page)]
    lines = "\n".join(fenced).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_commands() -> list[list[str]]:
    """Return module and arguments of every command that runs our Python code."""
    python = [words[1:] for words in commands() if words[0] in ("python", ".venv/bin/python")]
    scripts = [words for words in python if words[0].endswith(".py")]
    modules = [
        words[1:] for words in python if words[0] == "-m" and words[1].startswith(("scripts", "tests", "template"))
    ]
    return [*([words[0].removesuffix(".py").replace("/", "."), *words[1:]] for words in scripts), *modules]


@pytest.mark.parametrize("words", python_commands(), ids=lambda words: " ".join(words)[:60])
def test_a_documented_command_parses(words: list[str]) -> None:
    name = f"{words[0]}.__main__" if (ROOT / words[0].replace(".", "/")).is_dir() else words[0]
    module, flags = importlib.import_module(name), words[1:]
    # It takes the flags of the program that it checks.
    roles = ["miner"] if name == "scripts.doctor" and "miner" in flags else []
    module.build_parser(*roles).parse_args(flags)


def test_the_miners_guide_downloads_the_subnets_pool() -> None:
    (words,) = [words for words in commands() if words[:2] == ["hf", "download"]]
    own = Competition.from_defaults()
    assert (words[2], words[words.index("--revision") + 1]) == (own.repo, own.eval_commit)


def test_readme_begins_with_the_two_commands() -> None:
    assert [shlex.split(line, comments=True) for line in blocks("bash", "README.md")[0].splitlines()] == [
        ["bash", "scripts/quickstart.sh"],
        ["bash", "scripts/test.sh"],
    ]


def test_every_named_script_exists() -> None:
    named = {word for words in commands() for word in words if re.fullmatch(r"[\w./-]+\.(sh|py|js)", word)}
    assert {"scripts/quickstart.sh", "contrib/ecosystem.config.js"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_documented_competition_is_the_default() -> None:
    (text,) = blocks("yaml", "docs/owner.md")
    values = yaml.safe_load(text)
    incentives = values.pop("incentives")
    assert incentives.keys() == {field.name for field in dataclasses.fields(Incentives)}
    assert Incentives(**incentives) == Incentives()
    assert Competition.from_mapping(values, "owner.md") == Competition.from_defaults()


def test_every_rejection_reason_is_documented() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGES["docs/miner.md"]))
    assert {str(reason) for reason in Reason} - explained == set()


def test_the_example_row_is_valid() -> None:
    from template.data.rows import SUBMISSION_LIMITS, parse_rows

    (text,) = blocks("json", "docs/miner.md")
    assert len(parse_rows(text.encode(), name="miner.md", limits=SUBMISSION_LIMITS)) == 1


def test_every_test_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES["docs/security.md"])
    assert len(named) > 30
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named if (ROOT / file).is_file()}
    assert [f"{file}::{test}" for file, test in named if f"def {test}" not in texts.get(file, "")] == []


def test_every_link_and_path_leads_to_a_file() -> None:
    named = re.compile(r"`((?:template|tests|scripts|docs|contrib|neurons)/[\w./-]+)`")
    missing = []
    for page, text in PAGES.items():
        links = [(ROOT / page).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        # The change log names files of the past.
        paths = [ROOT / name for name in named.findall(text) if page != "CHANGELOG.md"]
        missing += [f"{page}: {target}" for target in (*links, *paths) if not target.exists()]
    assert missing == []


def literals() -> str:
    """Return the string literals of the product, with a line feed between them."""
    files = [path for folder in ("template", "neurons", "scripts") for path in (ROOT / folder).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_every_message_of_the_troubleshooting_page_exists() -> None:
    cells = re.findall(r"^\| (`.*?) \|", PAGES["docs/troubleshooting.md"], flags=re.MULTILINE)
    quoted = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 20
    source = literals()
    assert not [text for text in quoted for part in text.split("…") if part.strip() not in source]


def test_the_release_is_the_same_in_every_page() -> None:
    versions = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert versions[0] == __version__
    assert re.findall(r"git checkout (v\d\S*)", PAGES["docs/operator.md"]) == [f"v{__version__}"]
    assert f"({WEIGHTS_VERSION} for {__version__})" in PAGES["docs/owner.md"]
