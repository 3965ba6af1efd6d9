"""The recomputation of a soak run, some losses included, in one report."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml

from template.config import load_competition, load_training_args
from template.constants import DATA_FILE
from template.workers.executor import Evaluator
from tests.campaigns.measure import MIB
from tests.campaigns.soak.curve import Curve
from tests.campaigns.soak.event_log import History
from tests.campaigns.soak.reference_model import ReferenceModel
from tests.campaigns.soak.run import RATE_LIMIT_BLOCKS, validator_name
from tests.campaigns.soak.weights import check_weights, compare
from tests.campaigns.synthetic_subnet import SyntheticSubnet

_RECOMPUTED = (
    *("rounds", "entries", "leaderboards", "lines", "ranks lost", "seeds", "losses", "burned", "shares repeated"),
)


@dataclass
class Report:
    """The counts of a run, in lines of a table, and its disagreements."""

    lines: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, name: str, value: object) -> None:
        """Add a line; counts are listed, the largest first."""
        if isinstance(value, Counter):
            value = ", ".join(f"{count} {what}" for what, count in value.most_common()) or "none"
        self.lines[name] = str(value)

    def __str__(self) -> str:
        width = max(map(len, self.lines))
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in self.lines.items())


def audit(folder: Path, *, validators: int, replays: int) -> Report:
    """Recompute a run, and evaluate some datasets again."""
    report, history = Report(), History.read(folder)
    values = yaml.safe_load((folder / "competition.yaml").read_text(encoding="utf-8"))
    curve = Curve(**{name: values[name] for name in Curve._fields})
    names = [validator_name(number) for number in range(validators)]
    models = [ReferenceModel.open(folder, name, history, curve) for name in names]
    _add_events(report, history)
    with SyntheticSubnet(folder) as subnet:
        calls = subnet.weights_calls()
        for model in models:
            hotkey = subnet.validator_hotkey(model.validator)
            model.check(subnet.net.chain_file)
            own = [call for call in calls if call.signer == hotkey]
            check_weights(model, own, rate_limit=RATE_LIMIT_BLOCKS)
            model.findings += _replay(model, folder, replays)
            _add_model(report, model)
    compared: Counter[str] = Counter()
    for first, second in pairwise(models):
        report.findings += compare(first, second, compared)
    report.add("weights of two validators", compared)
    report.findings += history.failures
    if not history.is_settled:
        report.findings.append("at the end an entry is pending, or weights have an unknown outcome")
    return report


def _add_events(report: Report, history: History) -> None:
    events = history.events
    report.add("actions of miners", history.count("action "))
    report.add("uids recycled", events["uid recycled"])
    report.add("seals revealed", f"{events['revealed']} of {events['sealed']}")
    report.add("spells of failures", history.count("spell of "))
    report.add("validators restarted", events["validator restarted"])
    report.add("workers killed", events["worker killed"])
    memory = [max(measured["memory_kib"].values()) / 1024 for measured in history.measured]
    disk = [sum(measured["disk"].values()) / MIB for measured in history.measured]
    report.add("memory, MiB", f"{memory[0]:.0f} at the start, {memory[-1]:.0f} at the end, {max(memory):.0f} at most")
    report.add("state on disk, MiB", f"{disk[-1]:.1f} at the end, {max(disk):.1f} at most, of all validators")


def _add_model(report: Report, model: ReferenceModel) -> None:
    counts, name = model.counts, model.validator
    for kind in ("verdict", "weights"):
        own = {what.removeprefix(f"{kind} "): n for what, n in counts.items() if what.startswith(f"{kind} ")}
        report.add(f"{name} {kind}", Counter(own))
    report.add(f"{name} recomputed", ", ".join(f"{counts[what]} {what}" for what in _RECOMPUTED))
    report.add(f"{name} disagreements", len(model.findings))
    report.findings += model.findings


def _replay(model: ReferenceModel, folder: Path, replays: int) -> Iterator[str]:
    """Evaluate some datasets again, in this process, from what the miners published."""
    receipts = sorted(model.state["receipts"], key=lambda row: (row["hotkey"], row["entry"]))
    evaluator = Evaluator(
        competition=load_competition(folder / "competition.yaml"),
        training_args=load_training_args(folder / "training_args.yaml"),
        eval_data_dir=folder / model.validator / "eval_data",
        model_path=folder / "model",
        device="cpu",
    )
    for row in random.Random(0).sample(receipts, min(replays, len(receipts))):
        result = json.loads(row["receipt"])["result"]
        data_dir = folder / "replays" / result["train_sha256"]
        data_dir.mkdir(parents=True, exist_ok=True)
        content = model.history.contents[result["train_sha256"]].text
        (data_dir / DATA_FILE).write_bytes(content.encode())
        loss = evaluator.evaluate(data_dir, result["lucky_num"]).loss
        model.counts["losses"] += 1
        if loss != result["loss"]:
            yield f"{model.validator} {row['entry']} has loss {result['loss']}, and it is {loss}"
