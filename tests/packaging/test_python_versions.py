"""Check that every supported Python compiles the product and follows its rules to the same bits.

The other versions are tried where they are installed, with the standard library alone: torch has a build of its own for
each. The workflow runs every test on each version.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.network import ROOT
from tests.fixtures.source import PRODUCT
from tests.packaging.test_packaging import SUPPORTED

OTHERS = [version for version in SUPPORTED if version != ".".join(map(str, sys.version_info[:2]))]
# Numbers and texts on which validators must agree: near duplicates of all characters, losses, scores and weights.
CONSENSUS = """
import hashlib, json, random, sys
sys.path.insert(0, sys.argv[1])
from template.competition import Competition
from template.data.near_duplicates import normalized_digest
from template.data.rows import Message, Row
from template.rules.ledger import estimate_loss
from template.rules.scoring import score_of, weights_from_scores

texts = hashlib.sha256()
for code in (*range(0x80, 0x3400), *range(0xA000, 0xD800), *range(0xE000, 0x20000)):
    text = f"a{chr(code)}\\u0301 \\u0327{chr(code)}\\u0323"
    texts.update(normalized_digest(Row(None, (Message("user", text), Message("assistant", "a")), 1)))
draw, competition = random.Random(7), Competition.from_defaults()
losses = [[draw.gauss(2.0, 0.01) for _ in range(48)] for _ in range(100)]
estimates = [estimate_loss(each, 0.002) for each in losses]
scores = {f"key{index}": score_of(each.loss, competition) for index, each in enumerate(estimates)}
weights = weights_from_scores(scores, {key: uid for uid, key in enumerate(scores)}, 0)
print(json.dumps([texts.hexdigest(), [[each.mean, each.spread, each.loss] for each in estimates], weights]))
"""
COMPILE = """
import pathlib, sys, warnings
warnings.simplefilter("error")
for folder in sys.argv[2:]:
    for path in pathlib.Path(sys.argv[1], folder).rglob("*.py"):
        compile(path.read_bytes(), path, "exec")
"""


def find_python(version: str) -> str:
    """Return a working Python of this version: on PATH, or beside the one that runs this."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}"))
    for candidate in filter(None, (shutil.which(f"python{version}"), *map(str, beside))):
        # A version manager's shim can exist and still not work.
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"no Python {version} on this machine")


def run(python: str, code: str, *arguments: str) -> str:
    command = [python, "-I", "-B", "-c", code, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("version", OTHERS)
def test_another_python_compiles_every_file(version: str) -> None:
    run(find_python(version), COMPILE, *PRODUCT, "tests", "contrib")


@pytest.fixture(scope="module")
def own() -> object:
    """The results of the Python that runs this."""
    return json.loads(run(sys.executable, CONSENSUS))


@pytest.mark.parametrize("version", OTHERS)
def test_another_python_agrees_to_the_last_bit(version: str, own: object) -> None:
    assert json.loads(run(find_python(version), CONSENSUS)) == own


def test_no_sql_statement_numbers_its_placeholders() -> None:
    """Python 3.12 warns of `?1` with a sequence of values, and 3.14 refuses it."""
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")]
    texts = {path: re.findall(r'"[^"\n]*\?\d[^"\n]*"', path.read_text(encoding="utf-8")) for path in files}
    assert [str(path) for path, found in texts.items() if any("SELECT" in text for text in found)] == []
