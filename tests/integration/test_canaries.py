"""Test that the search for planted secrets finds every spelling."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.canaries import ENVIRONMENT
from tests.fixtures.network import ROOT

CONFTEST = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.fixtures import canaries
from tests.fixtures.canaries import pytest_runtest_logreport, pytest_sessionfinish, pytest_terminal_summary
from tests.fixtures.canaries import pytest_testnodedown
home = Path(__file__).with_name("home")
home.mkdir(exist_ok=True)
canaries.plant(home)
"""

PREAMBLE = """
import base64, json, os, pathlib, subprocess, sys, urllib.parse, pytest
from tests.fixtures import canaries
home = pathlib.Path(__file__).with_name("home")
key = os.environ["WANDB_API_KEY"]
password = os.environ["BT_PW_CANARY"]
"""

INNOCENT = ["(tmp_path / 'innocent').touch()", "(home / 'tokens.json').write_text(canaries.hub_token('alice'))"]
# Actions of tests, and how each is listed at the end of the session.
LEAKS = {
    "(tmp_path / 'log').write_text(key)": "/log (as it is)",
    "(home / 'a' / 'b').mkdir(parents=True); (home / 'a/b/c').write_text(key)": "/home/a/b/c (as it is)",
    "(tmp_path / 'state.json').write_text(json.dumps([password]))": "/state.json (as it is)",
    "(tmp_path / 'url').write_text(urllib.parse.quote(password, safe=''))": "/url (as it is)",
    "(tmp_path / 'wide').write_text('x' + key, encoding='utf-16')": "/wide (in utf-16-le)",
    "(tmp_path / 'hex').write_text(key.encode().hex())": "/hex (in hex)",
    "(tmp_path / key).mkdir()": "the name ",
    "print(key)": "Captured stdout call (as it is)",
    "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"BT_PW_CANARY\"])'], capture_output=True)": (
        "an output of "
    ),
    **{
        f"(tmp_path / '{n}').write_bytes(base64.urlsafe_b64encode(b'{'y' * n}' + key.encode()))": f"/{n} (in base64"
        for n in range(3)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_planted_secret_fails_the_session_and_is_named(tmp_path: Path, workers: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    tests = [f"def test_{number}(tmp_path):\n    {action}\n" for number, action in enumerate([*LEAKS, *INNOCENT])]
    failing = "@pytest.mark.xfail\ndef test_failure():\n    assert key == ''\n"
    (tmp_path / "test_leak.py").write_text("".join([PREAMBLE, *tests, failing]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    done = subprocess.run(
        [*command, "-n", workers, "--basetemp", "base", "test_leak.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and f"{len(tests)} passed, 1 xfailed" in done.stdout, done.stdout
    summary = done.stdout.partition("secrets of the environment were found")[2]
    expected = [*LEAKS.values(), "test_failure: report (as it is)"]
    assert [text for text in expected if text not in summary] == [], done.stdout
    assert "innocent" not in summary and "tokens.json" not in summary, done.stdout


def test_the_session_s_own_secrets_are_in_the_environment() -> None:
    assert all(os.environ[name] == value for name, value in ENVIRONMENT.items())
