"""A local network of one miner, alice, with its hub set for this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.network import Net, use_hub


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with Net(tmp_path / "network", ["alice"], tempo=30) as net, use_hub(net, "alice"):
        yield net
