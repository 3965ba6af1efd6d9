"""Every attack by chain data, receipts and round files comes to the right verdict, within its bounds."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from loguru import logger

from template.telemetry.logging import configure_logging
from tests.campaigns.attack.chain import ATTACKS
from tests.campaigns.attack.runner import Attack, launch

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) .*")


@pytest.fixture(scope="module", autouse=True)
def logs() -> Iterator[io.StringIO]:
    """What the validators of all attacks wrote into their logs, set up as an entry point does."""
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    with redirect_stderr(io.StringIO()) as stream:
        configure_logging(is_debug=True)
        yield stream
    logger.remove()
    root.handlers[:] = kept
    root.setLevel(level)


def test_no_two_attacks_have_one_name() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) > 150


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_hostile_chain_data_comes_to_its_verdict_within_its_bounds(attack: Attack, tmp_path: Path) -> None:
    assert not launch(attack, tmp_path).faults()


def test_nothing_odd_reached_the_logs(logs: io.StringIO) -> None:
    lines = logs.getvalue().split("\n")[:-1]
    assert len(lines) > 1000
    assert [line for line in lines if not (line.isprintable() and LINE.fullmatch(line))] == []
    for told in ("\\x1b[2J", "\\nINFO weights set", "\\u202e"):
        assert told in logs.getvalue(), "it was said, and spelt out"
