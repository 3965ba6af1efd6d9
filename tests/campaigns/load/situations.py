"""The situations of the load campaign, with their miners and datasets."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from template.constants import (
    BLOCK_S,
    MAX_EVAL_SET_ROWS,
    MAX_SUBMISSION_BYTES,
    MAX_SUBMISSION_ROWS,
)
from template.localnet.hub.store import upload_files
from template.rules.duplicates import max_shared
from template.rules.stands import align
from tests.campaigns.synthetic_subnet import COMPETITION, SyntheticSubnet, make_file, make_rows
from tests.fixtures.faulty_hub import FaultKind, HubFault

# Commitments of one hotkey must be so many blocks apart: the chain's space for an epoch holds 31.
_RECOMMIT_BLOCKS = 12
_ROW_OVERHEAD, _WORD_CHARS = 110, 6.9


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The size and the acts of one run.

    Args:
        kind: of datasets, see `LoadedSubnet.datasets`.
        steady: miners who commit once; the others commit again every `recommit_blocks` blocks unless that is 0.
        hung: miners, the first in line, whose repos never answer.
    """

    name: str
    what: str
    kind: str = "near"
    miners: int = 256
    rows: int = 250
    pool_rows: int = 40_000
    row_bytes: int = 1_200
    block_s: float = 0.25
    tempo: int = 360
    rounds: int = 2
    recommit_blocks: int = 0
    steady: int = 256
    hung: int = 0
    sample_size: int = 256
    queue_size: int = 256

    @property
    def speed(self) -> float:
        """Times as fast as the main network's blocks."""
        return BLOCK_S / self.block_s

    @property
    def incentives(self) -> Mapping[str, object]:
        """Rules by which everyone is evaluated once, and paid."""
        return {
            "reward": "proportional",
            "epsilon": 0.0,
            "evaluations": 1,
            "hold": 1,
            "slots": self.sample_size,
            "update_blocks": 0,
            "blocks_per_epoch": self.tempo,
        }

    @property
    def verdict_rounds(self) -> int:
        """Rounds after which everyone who commits once must have a verdict."""
        return math.ceil(self.miners / min(self.sample_size, self.queue_size)) + 1


_recommit = partial(Situation, recommit_blocks=_RECOMMIT_BLOCKS)
SITUATIONS = (
    Situation(name="same_block", what="all commit different datasets in one block", kind="different"),
    Situation(name="same_dataset", what="all commit the same rows in one block", kind="same"),
    Situation(name="near_copies", what="all commit in one block, each pair sharing just too little to be duplicates"),
    Situation(name="large_files", what="all commit files at the byte limit in one block", kind="large", block_s=1.0),
    _recommit(name="recommit", what="248 commit as often as the chain allows, 8 do not", steady=8, rounds=3),
    _recommit(
        name="recommit_sampled",
        what="the same, with 100 downloads and evaluations in a round",
        steady=8,
        rounds=4,
        sample_size=100,
        queue_size=100,
    ),
    Situation(name="hung", what="248 repos send a byte at a time, the 8 last in line answer", hung=248, block_s=0.5),
    Situation(name="large_pool", what="a pool of 100,000 rows of 2 KB", pool_rows=100_000, row_bytes=2_000),
    Situation(name="largest_pool", what="a pool at its limits", pool_rows=MAX_EVAL_SET_ROWS, row_bytes=505),
    _recommit(
        name="all_at_once",
        what="files at the byte limit, 100,000 rows, 200 commit again, 40 hang, 16 steady",
        kind="large",
        pool_rows=100_000,
        row_bytes=2_000,
        steady=16,
        hung=40,
        block_s=1.5,
    ),
)


class LoadedSubnet:
    """The subnet of a situation, all datasets uploaded and none committed."""

    def __init__(self, folder: Path, situation: Situation) -> None:
        self.situation = situation
        words = int((situation.row_bytes - _ROW_OVERHEAD) / _WORD_CHARS)
        self._pool = make_rows(situation.pool_rows, words=words)
        self.pool_bytes = sum(map(len, self._pool)) + len(self._pool)
        folder.mkdir(parents=True)
        self.subnet = SyntheticSubnet.create(
            folder,
            pool=self._pool,
            competition={**COMPETITION.to_dict(), "rows": situation.rows, "incentives": situation.incentives},
            tempo=situation.tempo,
            weights_rate_limit=min(100, situation.tempo // 4),
            max_uids=situation.miners + 2,
        )
        self.miners = [f"miner-{number}" for number in range(situation.miners)]
        self.subnet.register(*self.miners)
        self.largest_bytes = 0
        self._versions = 0
        for miner, content in zip(self.miners, self.datasets(situation.kind), strict=True):
            self.subnet.upload(f"{miner}/data", content)
            self.largest_bytes = max(self.largest_bytes, len(content))
        if self.hung:
            pattern = f"/({'|'.join(self.hung)})/data/"
            self.subnet.set_hub_faults(HubFault(kind=FaultKind.HEADER_DRIP, seconds=0.2, pattern=pattern))

    @property
    def hung(self) -> list[str]:
        return self.miners[: self.situation.hung]

    @property
    def restless(self) -> list[str]:
        """Miners who commit again and again."""
        last = self.situation.miners - self.situation.steady
        return self.miners[self.situation.hung : last] if self.situation.recommit_blocks else []

    @property
    def steady(self) -> set[str]:
        """Hotkeys of the miners who commit once and whose repos answer."""
        steady = {*self.miners[self.situation.miners - self.situation.steady :]}.difference(self.hung)
        return {self.subnet.hotkey(miner) for miner in steady}

    def datasets(self, kind: str) -> Iterator[bytes]:
        """Yield a dataset for each miner.

        Args:
            kind: "different": random rows; "same": one for all; "near": the most shared rows that make no duplicate,
                and rows of its own; "large": the same, filled up to the byte limit with rows that do not count.
        """
        draw, rows = random.Random(1), self.situation.rows
        common = max_shared(rows)
        filling = _make_filling(rows) if kind == "large" else b""
        for number in range(len(self.miners)):
            start = common + number * (rows - common)
            chosen = [*self._pool[:common], *self._pool[start : start + rows - common]]
            if kind in ("different", "same"):
                chosen = draw.sample(self._pool, rows) if kind == "different" else list(self._pool[:rows])
            content = make_file(chosen)
            yield content + filling[: filling.rfind(b"\n", 0, max(0, MAX_SUBMISSION_BYTES - len(content))) + 1]

    def commit(self, miners: Sequence[str]) -> int:
        """Commit the same rows again in one block; return the block."""
        self._versions += 1
        version, root = {"README.md": f"version {self._versions}".encode()}, self.subnet.hub_root
        repos = {miner: f"{miner}/data" for miner in miners}
        return self.subnet.commit_together(
            {miner: self.subnet.text(repo, upload_files(root, repo, version)) for miner, repo in repos.items()}
        )

    def begin(self) -> None:
        """Commit for everyone, and stop at the next aligned block: the first round's."""
        if self.hung:
            self.commit(self.hung)
        self.commit(self.miners[self.situation.hung :])
        self.subnet.advance_to(align(self.subnet.chain.block(), self.situation.tempo))

    def go(self) -> None:
        """Let blocks come."""
        self.subnet.chain.set_block_time(self.situation.block_s)


def _make_filling(rows: int) -> bytes:
    """Return rows of no pool that fill the limits on bytes and rows."""
    frame = '{"conversations": [{"role": "user", "content": "%d"}, {"role": "assistant", "content": "%s"}]}'
    body = "x" * (MAX_SUBMISSION_BYTES // MAX_SUBMISSION_ROWS - len(frame))
    return make_file(frame % (number, body) for number in range(MAX_SUBMISSION_ROWS - rows))
