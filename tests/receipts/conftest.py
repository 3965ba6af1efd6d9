"""A round file of an honest validator, and a season of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.receipts.files import round_file
from tests.fixtures.audit import MINERS, Season
from tests.fixtures.network import Net, use_hub
from tests.fixtures.rounds import ACCOUNT, SIGNER, sign


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return round_file(ACCOUNT, signer=SIGNER, sign=sign).write(tmp_path / "rounds")


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Season]:
    with Net(tmp_path_factory.mktemp("season"), MINERS) as net, use_hub(net):
        yield Season(net)
