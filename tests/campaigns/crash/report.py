"""The table of a crash campaign: by kind of crash point what was killed there and what came of it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.campaigns.crash.launcher import kind_of
from tests.campaigns.crash.run import RANDOM, Outcome

_HEADINGS = ("kind", "scorer", "points", "kills", "restarts", "same end", "doubled", "orphans", "partial")
# Of them, the first are words and the others numbers.
_WORDS = 2


@dataclass
class Row:
    """One line of the table. points: that there are of the kind, known by name."""

    kind: str
    evaluator: str = "table"
    points: set[str] = field(default_factory=set)
    kills: int = 0
    restarts: int = 0
    same: int = 0
    runs: int = 0
    doubled: int = 0
    orphans: int = 0
    partial: int = 0

    def cells(self) -> tuple[str, ...]:
        return (
            self.kind, self.evaluator, str(len(self.points) or "-"), str(self.kills), str(self.restarts),
            f"{self.same} of {self.runs} runs", str(self.doubled), str(self.orphans), str(self.partial),
        )  # fmt: skip


@dataclass
class Campaign:
    """All runs of a campaign. scorers: of each run by its name, where it is not the table."""

    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[tuple[str, Outcome]] = field(default_factory=list)
    scorers: dict[str, str] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """SIGKILLs of the validator and of its workers, in all."""
        return sum(one.kills.total() for one in self._all())

    @property
    def disagreements(self) -> list[str]:
        return [said for one in self._all() for said in one.disagreements]

    def _all(self) -> list[Outcome]:
        return [*self.outcomes, *(one for _, one in self.faults)]

    @property
    def missed(self) -> set[str]:
        """Points of the undisturbed run, which is the first, at which none was killed."""
        return self.outcomes[0].points.difference(*(one.kills for one in self.outcomes))

    def rows(self) -> list[Row]:
        """By kind, those killed at a point of their own first, then by chance."""
        rows: dict[tuple[str, str], Row] = {}
        for one in self.outcomes:
            evaluator = self.scorers.get(one.name, "table")
            by_kind: Counter[str] = Counter()
            for point, count in one.kills.items():
                by_kind[kind_of(point)] += count
            for kind, count in by_kind.items():
                row = rows.setdefault((kind, evaluator), Row(kind, evaluator))
                _count(row, one, count, restarts=count, said=kind)
            for point in one.points | {point for point in one.kills if point != RANDOM}:
                if (kind_of(point), evaluator) in rows:
                    rows[kind_of(point), evaluator].points.add(point)
        found = sorted(
            rows.values(), key=lambda row: (row.kind == RANDOM, row.kind.split()[1:], row.kind, row.evaluator)
        )
        for name, one in self.faults:
            row = Row(f"fault: {name}", self.scorers.get(one.name, "table"))
            _count(row, one, one.kills.total(), restarts=one.starts - 1, said="")
            found.append(row)
        return found

    def __str__(self) -> str:
        lines = [_HEADINGS, *(row.cells() for row in self.rows())]
        widths = [max(len(line[at]) for line in lines) for at in range(len(_HEADINGS))]
        table = [
            "  ".join(_pad(text, width, at) for at, (text, width) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        taken = sum(one.taken for one in self._all())
        total = [
            "",
            f"points of the undisturbed run {len(self.outcomes[0].points)}, never killed at {len(self.missed)},"
            f" of them other than what the validator tells of itself {len(self.missed - set(_told(self.missed)))}",
            f"runs {len(self._all())}, kills {self.kills}, restarts {sum(one.starts - 1 for one in self._all())}",
            f"weights that the chain took {taken}, extrinsics with weights that it included"
            f" {sum(one.submitted for one in self._all())}",
            f"temporary files at the end of a run, at most {max((one.temporary for one in self._all()), default=0)}",
        ]
        notes = [f"{name}: {note}" for name, one in self.faults for note in (*one.notes, *_endings(one))]
        return "\n".join([*table, *total, *notes])


def _pad(text: str, width: int, at: int) -> str:
    return text.ljust(width) if at < _WORDS else text.rjust(width)


def _count(row: Row, one: Outcome, kills: int, *, restarts: int, said: str) -> None:
    """Adds a run's kills of a kind to its row. What was seen right after a kill is the kind's; the end is all's."""
    row.kills += kills
    row.restarts += restarts
    row.runs += 1
    row.same += not one.differences
    row.doubled += len(one.doubled)
    row.orphans += sum(_is_about(found, said) for found in one.orphans)
    row.partial += sum(_is_about(found, said) for found in one.partial)


def _is_about(found: str, kind: str) -> bool:
    return (
        not kind or not found.startswith("killed ") or kind_of(found.removeprefix("killed ").partition(": ")[0]) == kind
    )


def _told(points: Iterable[str]) -> list[str]:
    """Those whose name is what the validator was doing, which is a matter of moments: they may not come again."""
    return [point for point in points if " | record_heartbeat " in point]


def _endings(one: Outcome) -> list[str]:
    """With which statuses the validator ended by itself, and what it said last."""
    counts = Counter(status for status, _ in one.ends)
    words = {status: text.partition("ERROR")[2].strip() for status, text in one.ends}
    return [f"ended {count} times with status {status}: {words[status]}" for status, count in counts.items()]
