"""Evaluate a dataset in every situation of a machine, and compare the bits.

    python -m tests.campaigns.stress
    python -m tests.campaigns.stress --only rounding,OMP_ --dtypes float32
    python -m tests.campaigns.stress --model_path ~/models/SmolLM2-135M-Instruct --scores 2 --others 20
    python -m tests.campaigns.stress --device cuda:0 --model_path MODEL --model_id Qwen/Qwen2.5-1.5B-Instruct

Loaded cores, little memory, killed children, a thousand evaluations before, inherited variables, and what other code of
the process changes. Each evaluation must have the loss, the step losses and the adapter of an undisturbed one to the
last bit, or be refused by name, or count for another evaluation config, whose losses are never compared. Without
--model_path the model is the tiny one. The slowest evaluation is in multiples of the undisturbed median. Exit status:
0 all results are allowed, 1 some are not, 2 or 3 the command line or another setting is wrong, 4 this machine failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.arguments import Parser
from template.errors import ConfigError
from tests.campaigns import command

_TINY_MODEL_ID = "Qwen/Qwen2.5-1.5B-Instruct"
_MAX_HOG_BYTES = 4 * 2**30


def build_parser() -> Parser:
    parser = command.make_parser("stress", __doc__)
    parser.add_argument("--only", metavar="TEXTS", help="situations whose names contain one of these, comma-separated")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the base model (default: %(default)s)")
    parser.add_argument("--model_path", type=Path, metavar="DIR", help="a folder with a model (default: a tiny one)")
    parser.add_argument("--model_id", help="which chat template it has (default: the quickstart's model's)")
    parser.add_argument("--scores", type=int, default=3, help="evaluations in each situation (default: %(default)s)")
    parser.add_argument("--others", type=int, default=1000, help="of other datasets (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen situations and print their rows. Raises: ConfigError, HostError."""
    command.check_positive(args, "scores", "others")
    if unknown := {*args.dtypes.split(",")} - {"float32", "bfloat16"}:
        raise ConfigError(f"--dtypes must be some of float32,bfloat16, not {min(unknown)!r}")
    from scripts.bench.tiny_model import make_tiny_model
    from template.localnet.models.sources import MODEL_ID
    from tests.campaigns.stress.run import HEADER, Stress, write_datasets
    from tests.campaigns.stress.situations import list_situations

    with tempfile.TemporaryDirectory(prefix="stress-") as home:
        path = args.model_path
        stress = Stress(
            model_id=_TINY_MODEL_ID if path is None else args.model_id or MODEL_ID,
            model_path=make_tiny_model(Path(home) / "model") if path is None else path.resolve(),
            datasets=write_datasets(Path(home) / "datasets", rows=24),
            device=args.device,
            dtypes=tuple(args.dtypes.split(",")),
            evaluations=args.scores,
        )
        print(HEADER, flush=True)
        rows = [stress.measure()]
        print(rows[0], flush=True)
        memory_bytes = max(outcome.memory_bytes for outcome in stress.reference)
        hog_bytes = min(_free_bytes() * 3 // 4, _MAX_HOG_BYTES)
        situations = list_situations(args.device, others=args.others, memory_bytes=memory_bytes, hog_bytes=hog_bytes)
        for situation in situations:
            if args.only is None or any(text in situation.name for text in args.only.split(",")):
                rows.append(stress.run(situation))
                print(rows[-1], flush=True)
    failures = sum(not row.is_as_allowed for row in rows)
    verdict = f"{failures} with a result that is not allowed" if failures else "all with allowed results"
    print(f"{sum(len(row.verdicts) for row in rows)} evaluations in {len(rows)} situations, {verdict}")
    return 1 if failures else 0


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    sys.exit(main())
