"""Test the command that has all others as its first word."""

import pytest

from scripts import subnet
from template import __version__
from tests.fixtures.network import ROOT, call_main


def test_version_is_that_of_the_package() -> None:
    assert call_main(subnet.main, "--version").output == f"dataset-subnet {__version__}\n"


@pytest.mark.parametrize("name", subnet.COMMANDS)
def test_each_command_runs_the_program_that_it_names(name: str) -> None:
    ended = call_main(subnet.main, name, "--help")
    module = subnet.COMMANDS[name][0].removesuffix(":main").removesuffix(".__main__")
    path = module.replace(".", "/")
    assert ended.status == 0 and ((ROOT / path).is_dir() or f"python {path}.py" in ended.output)
    assert name in call_main(subnet.main, "--help").output


def test_status_and_messages_are_those_of_the_command() -> None:
    ended = call_main(subnet.main, "status", "--state_dir", "/nowhere")
    assert ended.status == 3 and "/nowhere" in ended.logs[-1]


@pytest.mark.parametrize("words", [[], ["mine"], ["status"], ["--netuid", "96"]])
def test_wrong_command_line_ends_with_status_two(words: list[str]) -> None:
    assert call_main(subnet.main, *words).status == 2
