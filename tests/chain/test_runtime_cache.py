"""Damaged runtime metadata, which the client keeps on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.errors import RemoteError
from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.chain import NETUID
from tests.fixtures.node import dial


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "cache"
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(folder))
    yield folder


def test_damaged_metadata_is_read_again_from_a_node(local: LocalChain, cache: Path) -> None:
    with NodeServer(local.path) as node:
        with dial(node, NETUID) as chain:
            chain.view()
        (stored,) = cache.iterdir()
        stored.write_bytes(stored.read_bytes().replace(b"get_metagraph", b"get_metagraqh"))
        with dial(node, NETUID) as chain:
            with pytest.raises(RemoteError, match="invalid answer"):
                chain.view()
            assert chain.view().block == local.block()


def test_valid_metadata_stays_on_disk(local: LocalChain, cache: Path) -> None:
    with NodeServer(local.path) as node, dial(node, NETUID) as chain:
        chain.view()
        with pytest.raises(RemoteError):
            chain.snapshot(10**6)
    assert len(list(cache.iterdir())) == 1
