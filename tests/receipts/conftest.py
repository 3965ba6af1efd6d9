"""A round file of an honest validator."""

from pathlib import Path

import pytest

from template.receipts.files import write_round
from tests.fixtures.rounds import ACCOUNT, SIGNER, sign


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_round(tmp_path / "rounds", ACCOUNT, signer=SIGNER, sign=sign)
