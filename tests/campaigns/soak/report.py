"""The recomputation of a soak run, some losses included."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from template.config import load_competition, load_training_args
from template.constants import DATA_FILE
from template.workers.executor import Evaluator
from tests.campaigns.soak.curve import Curve
from tests.campaigns.soak.event_log import History
from tests.campaigns.soak.reference_model import ReferenceModel
from tests.campaigns.soak.run import RATE_LIMIT_BLOCKS, VALIDATORS
from tests.campaigns.soak.weights import check_weights
from tests.campaigns.synthetic_subnet import SyntheticSubnet


def audit(folder: Path, *, replays: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Recompute a run, with some losses; return counts and disagreements."""
    history = History(folder)
    values = yaml.safe_load((folder / "competition.yaml").read_text(encoding="utf-8"))
    curve = Curve(**{name: values[name] for name in Curve._fields})
    summary, findings = {"events": history.events}, list(history.failures)
    with SyntheticSubnet(folder) as subnet:
        calls = subnet.weights_calls()
        for name in VALIDATORS:
            model = ReferenceModel.open(folder, name, history, curve)
            model.check(subnet.net.chain_file)
            own = [call for call in calls if call.signer == subnet.validator_hotkey(name)]
            check_weights(model, own, rate_limit=RATE_LIMIT_BLOCKS)
            findings += [*model.findings, *_replay(model, folder, replays)]
            summary[name] = model.counts
    if not history.is_settled:
        findings.append("at the end an entry is pending, or weights have an unknown outcome")
    return summary, findings


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
