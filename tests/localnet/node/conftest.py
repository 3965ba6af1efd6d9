from collections.abc import Iterator

import pytest

from template.localnet.chain.chain import LocalChain
from template.localnet.node.server import NodeServer
from tests.fixtures.node import Wire, open_wire


@pytest.fixture
def node(local: LocalChain) -> Iterator[NodeServer]:
    with NodeServer(local.path) as server:
        yield server


@pytest.fixture
def wire(node: NodeServer) -> Iterator[Wire]:
    with open_wire(node) as connection:
        yield connection
