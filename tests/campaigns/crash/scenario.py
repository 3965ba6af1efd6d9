"""The competition of a crash run, with the same blocks and bytes in every run.

It is made once. Each run works on a copy, so that the chain's hashes, and with them seeds and losses, are the same.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.campaigns.crash.points import ROUND_BLOCKS
from tests.campaigns.process_under_test import write_training_args
from tests.campaigns.synthetic_subnet import LARGE_ROWS, WIDE_CURVE, SyntheticSubnet, make_file, make_short_rows

_MINERS = ("alice", "bob", "carol", "dave", "erin", "frank", "gina", "copycat", "outsider", "broken", "ghost", "bare")
# Blocks between the commitments of a phase and its round's start.
_BLOCKS_BEFORE = 20
_POOL_ROWS = 400
# A dataset is confirmed in its second round.
_INCENTIVES = {
    "reward": "proportional",
    "epsilon": 0.0,
    "evaluations": 2,
    "hold": 2,
    "slots": 10,
    "update_blocks": 0,
    "blocks_per_epoch": ROUND_BLOCKS,
}


@dataclass(frozen=True)
class Phase:
    """The actions before a round, and the expected state at its end.

    verdicts: rejections and losses.
    """

    actions: tuple[tuple[str, ...], ...]
    verdicts: int
    datasets: int


@dataclass(frozen=True)
class Base:
    """The folder of the closed subnet and the model, and the phases of all runs."""

    folder: Path
    phases: tuple[Phase, ...]


def make_base(folder: Path) -> Base:
    """Make the subnet in a new folder and perform the first phase."""
    (folder / "subnet").mkdir(parents=True)
    write_training_args(folder / "training_args.yaml")
    with SyntheticSubnet.create(
        folder / "subnet",
        pool=make_short_rows(range(_POOL_ROWS)),
        competition={"id": "crash", "repo": "crash/pool", "rows": 110, **WIDE_CURVE, "incentives": _INCENTIVES},
    ) as subnet:
        subnet.register(*_MINERS)
        subnet.chain.advance(2)
        phases = _write_phases(subnet)
        begin_phase(subnet, 0, phases[0])
    return Base(folder, phases)


def start_of(phase: int) -> int:
    """Return the block at which the round of a phase starts."""
    return ROUND_BLOCKS * (phase + 1)


def begin_phase(subnet: SyntheticSubnet, number: int, phase: Phase) -> None:
    """Perform the phase's actions shortly before its round starts."""
    subnet.advance_to(start_of(number) - _BLOCKS_BEFORE)
    for action, *arguments in phase.actions:
        getattr(subnet, action)(*arguments)
    subnet.advance_to(start_of(number))


def _write_phases(subnet: SyntheticSubnet) -> tuple[Phase, ...]:
    """Upload all files and return the phases that commit them."""

    def text(miner: str, content: bytes | Iterable[int] | None, *, by_digest: bool = False) -> str:
        file = content if isinstance(content, bytes) or content is None else make_file(make_short_rows(content))
        commit = subnet.upload(f"{miner}/data", file)
        return subnet.text(f"{miner}/data", sha256(file or b"").hexdigest() if by_digest else commit)

    def commits(**contents: bytes | Iterable[int] | None) -> list[tuple[str, str, str]]:
        return [("commit", miner, text(miner, content)) for miner, content in contents.items()]

    large = range(LARGE_ROWS)
    copy = [*large[2:], 110, 111]
    random.Random(0).shuffle(copy)
    sealed = text("dave", range(210, 240))
    cut_off = make_file(make_short_rows(range(5)))[:-9]
    first = [
        # Without an upload, so that a retry is recorded.
        ("commit", "bob", subnet.text("bob/data", "0" * 64)),
        *commits(alice=large, copycat=copy, outsider=[1, 2, 3, 1000], broken=cut_off),
        ("commit", "ghost", subnet.text("ghost/nothing", "0" * 40)),
        *commits(bare=None),
    ]
    second = [
        ("seal", "dave"),
        *commits(bob=range(112, 142), carol=range(150, 180), outsider=range(180, 210)),
        ("reveal", "dave", sealed),
    ]
    third = [
        *commits(erin=range(240, 300, 2)),
        ("commit", "gina", text("gina", range(241, 300, 2), by_digest=True)),
        *commits(copycat=range(300, 330), frank=b"\n"),
    ]
    return (
        Phase(tuple(first), verdicts=5, datasets=2),
        Phase(tuple(second), verdicts=10, datasets=6),
        Phase(tuple(third), verdicts=18, datasets=9),
        Phase((), verdicts=21, datasets=9),
    )
