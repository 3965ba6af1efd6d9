"""Publishes one dataset: checks it, uploads it to the Hub, and commits it on chain.

    python neurons/miner.py --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey \\
        --hf_repo_id me/my-dataset --dataset_path data.jsonl

The Hub token is read from HF_TOKEN or from the Hub's own login. Exit status: 0 the commitment is visible on chain,
2 or 3 the command line or another setting is wrong, 4 this machine failed, 5 the Hub did not answer, 6 a validator
would refuse the dataset (the message says why).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from template import cli
from template.data import Row, encode_row
from template.settings import load_training_args
from template.templates import template_for


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="miner", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf_repo_id", required=True, help="dataset repo on the Hub, owner/name; made if missing")
    parser.add_argument("--dataset_path", type=Path, required=True, help="the file, or a folder with a data.jsonl")
    parser.add_argument("--force", action="store_true", help="publish even what a validator will refuse")
    cli.add_chain_arguments(parser)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=cli.DEFAULT_STATE_DIR / "miner",
        help="where the evaluation set is kept (default: %(default)s)",
    )
    parser.add_argument(
        "--poll_seconds", type=float, default=6.0, help="between looks at the chain (default: %(default)s)"
    )
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publishes and prints the commitment and its block; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Builds the miner and runs it. Raises: SubnetError."""
    from template.miner import MinerConfig, ensure_token, publish_dataset

    poll_s = cli.check_poll_seconds(args.poll_seconds)
    competition = cli.read_competition(args)
    config = MinerConfig(
        hf_repo_id=args.hf_repo_id,
        dataset_path=args.dataset_path.expanduser(),
        competition=competition,
        work_dir=cli.check_folder(args.work_dir / competition.digest[:12], "--work_dir"),
        has_target=make_target_check(args),
        is_forced=args.force,
        poll_s=poll_s,
        hub_token=ensure_token(cli.hub_token()),
    )
    with cli.open_chain(args) as chain:
        published = publish_dataset(config, chain)
    print(f"{published.record} committed in block {published.block}")
    return 0


def make_target_check(args: argparse.Namespace) -> Callable[[Row], bool]:
    """Whether a row keeps an answer in the model's own tokens; the tokenizer is loaded when first asked."""

    def has_target(row: Row) -> bool:
        from template.model import load_tokenizer

        training_args = load_training_args(args.training_args)
        tokenize = load_tokenizer(training_args, model_path=args.model_path)
        return encode_row(row, template_for(training_args.model_id), tokenize) is not None

    return has_target


if __name__ == "__main__":
    sys.exit(main())
