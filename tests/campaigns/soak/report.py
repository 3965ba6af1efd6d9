"""What a soak run came to: the books of all its validators done again, losses included, in one report."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml

from template.config import load_competition
from template.constants import DATA_FILE
from tests.campaigns.soak.curve import Curve
from tests.campaigns.soak.history import History
from tests.campaigns.soak.node import make_evaluator, validator_name
from tests.campaigns.soak.reference_model import Books
from tests.campaigns.soak.run import RATE_LIMIT_BLOCKS
from tests.campaigns.soak.weights import check_weights, compare, read_extrinsics
from tests.campaigns.soak.world import validator_key

_MIB = 2**20


@dataclass
class Report:
    """What was counted, in lines of a table, and what does not agree."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def add(self, name: str, value: object) -> None:
        """Adds a line; counts are spelled out, the largest first."""
        if isinstance(value, Counter):
            value = ", ".join(f"{count} {what}" for what, count in value.most_common()) or "none"
        self.lines.append((name, str(value)))

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in self.lines)


def audit(folder: Path, *, validators: int, replays: int) -> Report:
    """Does the books of the run in `folder` again, and scores so many of each validator's datasets again."""
    report, history = Report(), History.read(folder)
    values = yaml.safe_load((folder / "competition.yaml").read_text(encoding="utf-8"))
    curve = Curve(**{name: values[name] for name in Curve._fields})
    extrinsics = read_extrinsics(folder)
    books = [Books.open(folder, validator_name(at), history, curve) for at in range(validators)]
    _describe_world(report, history)
    for at, one in enumerate(books):
        one.check(folder)
        check_weights(one, extrinsics.get(validator_key(at).ss58_address, []), rate_limit=RATE_LIMIT_BLOCKS)
        one.findings += _replay(one, folder, at, replays)
        _describe_books(report, one)
    compared: Counter[str] = Counter()
    for first, second in pairwise(books):
        report.findings += compare(first, second, compared)
    report.add("weights of two validators", compared)
    report.findings += history.failures
    if not history.is_settled:
        report.findings.append("at the end somebody still waits, or weights are of an unknown fate")
    return report


def _describe_world(report: Report, history: History) -> None:
    events = history.events
    report.add("deeds of miners", history.deeds)
    report.add("uids recycled", events["uid recycled"])
    report.add("seals opened", f"{events['revealed']} of {events['sealed']}")
    spells = {what.removeprefix("spells of "): count for what, count in events.items() if what.startswith("spells of ")}
    report.add("spells of failure", Counter(spells))
    report.add("validators restarted", events["validator restarted"])
    report.add("workers killed", events["worker killed"])
    rss = [one["rss"] / _MIB for one in history.measured]
    disk = [sum(one["disk"].values()) / _MIB for one in history.measured]
    report.add("memory, MiB", f"{rss[0]:.0f} at the start, {rss[-1]:.0f} at the end, {max(rss):.0f} at most")
    report.add("state on disk, MiB", f"{disk[-1]:.1f} at the end, {max(disk):.1f} at most, of all validators")


def _describe_books(report: Report, books: Books) -> None:
    counts, name = books.counts, books.validator
    for kind in ("verdict", "weights"):
        found = {what.removeprefix(f"{kind} "): count for what, count in counts.items() if what.startswith(f"{kind} ")}
        report.add(f"{name} {kind}", Counter(found))
    looked = ("rounds", "entries", "tables", "lines", "ranks lost", "seeds", "losses", "burned", "shares given again")
    report.add(f"{name} recomputed", ", ".join(f"{counts[what]} {what}" for what in looked))
    report.add(f"{name} disagreements", len(books.findings))
    report.findings += books.findings


def _replay(books: Books, folder: Path, at: int, replays: int) -> Iterator[str]:
    """Scores some datasets again, here, from what the miners published."""
    receipts = sorted(books.state["receipts"], key=lambda row: (row["hotkey"], row["entry"]))
    chosen = random.Random(0).sample(receipts, min(replays, len(receipts)))
    evaluator = make_evaluator(folder, load_competition(folder / "competition.yaml"), at)
    for row in chosen:
        result = json.loads(row["receipt"])["result"]
        place = folder / "replays" / result["train_sha256"]
        place.mkdir(parents=True, exist_ok=True)
        content = books.history.contents[result["train_sha256"]].text
        (place / DATA_FILE).write_bytes(content.encode())
        loss = evaluator.evaluate(place, result["lucky_num"]).loss
        books.counts["losses"] += 1
        if loss != result["loss"]:
            yield f"{books.validator} {row['entry']} has loss {result['loss']}, and it is {loss}"
