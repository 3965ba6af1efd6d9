"""Scores the same dataset in every situation that a machine can put a score into, and compares the bits.

    python -m tests.campaigns.stress
    python -m tests.campaigns.stress --only rounding,OMP_ --dtypes float32
    python -m tests.campaigns.stress --model_path ~/.cache/dataset-subnet/SmolLM2-135M-Instruct-12fd25f --scores 2
    --others 20
    python -m tests.campaigns.stress --device cuda:0 --model_path MODEL --model_id Qwen/Qwen2.5-1.5B-Instruct

Loaded cores, memory that is short, killed children, a thousand scores before, inherited variables, and what other code
of the process changes. Each score must have the loss, the step losses and the adapter of an undisturbed one to the last
bit, or be refused by name, or be called another contest's, whose losses are never compared. Without --model_path the
model is the tiny one. A column tells the slowest score in multiples of the undisturbed median. Exit status: 0 all is as
it must be, 1 something is not, 2 or 3 the command line or another setting is wrong, 4 this machine failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from template import cli
from template.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="stress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TEXTS", help="situations whose names hold one of these, between commas")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the base (default: %(default)s)")
    parser.add_argument("--model_path", type=Path, metavar="DIR", help="a folder with a model (default: a tiny one)")
    parser.add_argument("--model_id", help="whose chat template it has (default: the quickstart's model's)")
    parser.add_argument("--scores", type=int, default=3, help="in each situation (default: %(default)s)")
    parser.add_argument("--others", type=int, default=1000, help="scores of other datasets (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=24, help="of the dataset (default: %(default)s)")
    parser.add_argument("--hog_gib", type=float, default=4.0, help="memory to take, at most (default: %(default)s)")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Checks the settings and meets the situations. Raises: ConfigError, HostError."""
    from template.localnet.models.sources import MODEL_ID
    from template.localnet.models.tiny import make_tiny_model

    for flag in ("scores", "others", "rows", "hog_gib"):
        if getattr(args, flag) <= 0:
            raise ConfigError(f"--{flag} must be positive, not {getattr(args, flag)}")
    if unknown := {*args.dtypes.split(",")} - {"float32", "bfloat16"}:
        raise ConfigError(f"--dtypes must be some of float32,bfloat16, not {min(unknown)!r}")
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        if args.model_path is None:
            # Its tokenizer is of the family that this template is for.
            model_path, model_id = make_tiny_model(Path(folder) / "model"), "Qwen/Qwen2.5-1.5B-Instruct"
        else:
            model_path, model_id = args.model_path.expanduser().resolve(), args.model_id or MODEL_ID
        return meet_all(args, model_path, model_id, Path(folder))


def meet_all(args: argparse.Namespace, model_path: Path, model_id: str, folder: Path) -> int:
    """Prints the table, row by row; 1 when one of them is not as it must be."""
    from tests.campaigns.stress.runner import HEADER, Stress, write_datasets
    from tests.campaigns.stress.situations import list_situations

    datasets = write_datasets(folder / "datasets", args.rows, max(1, args.rows * 2 // 3))
    stress = Stress(
        model_id=model_id,
        model_path=model_path,
        datasets=datasets,
        device=args.device,
        dtypes=tuple(args.dtypes.split(",")),
        scores=args.scores,
    )
    print(HEADER, flush=True)
    rows = [stress.measure()]
    print(rows[0], flush=True)
    memory_bytes = max(outcome.memory_bytes for outcome in stress.reference)
    situations = list_situations(
        args.device, others=args.others, memory_bytes=memory_bytes, hog_bytes=choose_hog_bytes(args.hog_gib)
    )
    for situation in situations:
        if args.only is None or any(text in situation.name for text in args.only.split(",")):
            rows.append(stress.meet(situation))
            print(rows[-1], flush=True)
    failures = sum(not row.is_as_allowed for row in rows)
    met = sum(len(row.verdicts) for row in rows)
    verdict = f"{failures} situations not as they must be" if failures else "all as they must be"
    print(f"{met} scores in {len(rows)} situations, {verdict}")
    return 1 if failures else 0


def choose_hog_bytes(most_gib: float) -> int:
    """Three quarters of what is free, at most so many GiB."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return int(min(free * 0.75, most_gib * 2**30))


if __name__ == "__main__":
    sys.exit(main())
