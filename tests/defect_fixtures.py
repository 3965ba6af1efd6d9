"""What the tests of the public reference's defects share: a short round, and a look at chain and hub from outside."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from net_fixtures import Net, SteppingChain

from template.localnet import hub_server
from template.localnet.hub_faults import Fault
from template.records import ChainView
from template.schedule import Policy

SHORT = Policy(max_rounds=1, blocks_per_epoch=20, block_threshold=5)


class BackwardChain(SteppingChain):
    """Tells of neurons and commitments in the other order."""

    def view(self, block: int | None = None) -> ChainView:
        view = super().view(block)
        return dataclasses.replace(view, neurons=view.neurons[::-1], commitments=view.commitments[::-1])


def weights_of(net: Net) -> dict[int, int] | None:
    """The validator's weights on chain."""
    return net.admin.weights(net.hotkey("validator"))


@contextmanager
def hub_requests() -> Iterator[list[str]]:
    """Every request that reaches a hub of this process meanwhile, as `METHOD /path?query`."""
    lines: list[str] = []
    take = hub_server.take_fault

    def record(root: Path, line: str) -> Fault | None:
        lines.append(line)
        return take(root, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_server, "take_fault", record)
        yield lines


def about(requests: list[str], text: str) -> list[str]:
    """The requests that hold the text."""
    return [line for line in requests if text in line]
