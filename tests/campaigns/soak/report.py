"""The recomputation of a soak run, some losses included."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import yaml

from template.config import load_competition, load_training_args
from template.constants import DATA_FILE
from template.workers.executor import Evaluator
from tests.campaigns.process_under_test import ROOT
from tests.campaigns.soak.curve import Curve
from tests.campaigns.soak.end_state import check_end, check_evaluated
from tests.campaigns.soak.event_log import History
from tests.campaigns.soak.reference_model import ReferenceModel
from tests.campaigns.soak.reference_rules import Rules
from tests.campaigns.soak.run import RATE_LIMIT_BLOCKS, VALIDATORS
from tests.campaigns.soak.weights import check_weights
from tests.campaigns.synthetic_subnet import SyntheticSubnet
from tests.fixtures.faulty_hub import FaultyHub


def audit(folder: Path, *, replays: int, has_files: bool = True) -> tuple[dict[str, Counter[str]], list[str]]:
    """Recompute a run and audit its round files; return counts and disagreements."""
    history = History(folder)
    rules = _read_rules(folder / "competition.yaml")
    summary, findings = {"events": history.events}, list(history.failures)
    with SyntheticSubnet(folder) as subnet:
        calls = subnet.weights_calls()
        for name in VALIDATORS:
            model = ReferenceModel.open(folder, name, history, rules)
            model.check(subnet.net.chain_file)
            check_end(model)
            check_evaluated(model)
            own = [call for call in calls if call.signer == subnet.validator_hotkey(name)]
            check_weights(model, own, rate_limit=RATE_LIMIT_BLOCKS)
            findings += [*model.findings, *_replay(model, folder, replays)]
            findings += _audit_files(subnet, name) if has_files else ()
            summary[name] = model.counts
    if not history.is_settled:
        findings.append("at the end an entry is pending, or weights have an unknown outcome")
    return summary, findings


def _audit_files(subnet: SyntheticSubnet, name: str) -> Iterator[str]:
    """Audit a validator's round files with the chain, as a stranger would."""
    folder = subnet.folder
    command = [sys.executable, str(ROOT / "scripts" / "audit.py"), str(folder / name / "rounds"), "--sample", "0"]
    flags = {
        "--competition": folder / "competition.yaml",
        "--training_args": folder / "training_args.yaml",
        "--model_path": folder / "model",
        "--device": "cpu",
        "--subtensor.network": subnet.network,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    with closing(FaultyHub(subnet.hub_root)) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf_home")}
        ended = subprocess.run([*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    if ended.returncode != 0:
        lines = ended.stdout.splitlines() or ended.stderr.splitlines()
        yield from (
            f"{name}: audit status {ended.returncode}: {line}" for line in lines if line.strip() != "consistent"
        )


def _read_rules(path: Path) -> Rules:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Rules(Curve(**{name: values[name] for name in Curve._fields}), **values["incentives"])


def _replay(model: ReferenceModel, folder: Path, replays: int) -> Iterator[str]:
    """Evaluate some published datasets again in this process."""
    receipts = sorted(model.state["evaluations"], key=lambda row: (row["hotkey"], row["entry"], row["number"]))
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
