"""The honest round that audits and replays begin with, and small products for benchmarks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.audit import NAMES, Office
from tests.fixtures.network import Net, use_hub
from tests.fixtures.training import remember_results


@pytest.fixture(scope="module")
def office(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """An honest validator's round on a network of its own; read-only."""
    folder = tmp_path_factory.mktemp("office")
    with Net(folder / "network", NAMES) as net, use_hub(net), remember_results():
        yield Office(net, folder, tiny_model)


@pytest.fixture(scope="module")
def small_products() -> Iterator[None]:
    """Have benchmarks time small matrix products: the usual ones take minutes where a CPU emulates bfloat16."""
    from scripts.bench import flops

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(flops._SQUARES, "cpu", (64, 128))
        yield
