"""Publishes one dataset: checks it, shows what it will do and asks, uploads it to the Hub, and commits it on chain.

    python neurons/miner.py --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey \\
        --hf_repo_id me/my-dataset --dataset_path data.jsonl

With --seal the commitment is on chain at once, but nobody can read what it says until shortly before the validators fix
their next round, and the file is on this machine alone until they do: the miner waits for that, and then uploads it.
Whatever interrupts it, run it again with the same flags: it goes on where it was, and commits nothing twice.

The Hub token is read from HF_TOKEN or from the Hub's own login. Exit status: 0 the commitment is visible on chain,
1 the question was answered with no, 2 or 3 the command line or another setting is wrong, 4 this machine failed,
5 the Hub or the chain did not answer, 6 a validator would refuse the dataset (the message says why).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from template import cli, files
from template.errors import ConfigError

_BLOCKS_PER_EPOCH = 360


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.make_parser("miner", __doc__)
    parser.add_argument("--hf_repo_id", required=True, help="dataset repo on the Hub, owner/name; made if missing")
    parser.add_argument("--dataset_path", type=Path, required=True, help="the file, or a folder with a data.jsonl")
    parser.add_argument("--yes", action="store_true", help="publish without asking")
    parser.add_argument(
        "--force",
        action="store_true",
        help="publish even what a validator will refuse, or in place of a sealed commitment that is still to open",
    )
    _add_seal_arguments(parser)
    cli.add_chain_arguments(parser)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=cli.DEFAULT_STATE_DIR / "miner",
        help="where the evaluation set is kept, and what the miner has begun (default: %(default)s)",
    )
    parser.add_argument(
        "--poll_seconds", type=float, default=6.0, help="between looks at the chain (default: %(default)s)"
    )
    cli.add_logging_arguments(parser)
    return parser


def _add_seal_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sealed submissions")
    group.add_argument("--seal", action="store_true", help="hide commitment and file until the next round is fixed")
    group.add_argument("--reveal_blocks", type=int, metavar="N", help="open N blocks from now and upload at once")
    group.add_argument(
        "--blocks_per_epoch",
        type=int,
        default=_BLOCKS_PER_EPOCH,
        help="the validators' blocks per round, which starts at its multiples (default: %(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Publishes and prints the commitment and its block; returns the exit status."""
    return cli.run_main(build_parser(), argv, run, is_private=True)


def run(args: argparse.Namespace) -> int:
    """Builds the miner and runs it. Raises: SubnetError."""
    from template.miner.draft import MinerConfig
    from template.miner.publish import ensure_token, publish_dataset
    from template.miner.sealed import after_blocks, at_round_start, seal_dataset

    poll_s = cli.check_poll_seconds(args.poll_seconds)
    if args.reveal_blocks is not None and not args.seal:
        raise ConfigError("--reveal_blocks needs --seal")
    by_round = at_round_start(args.blocks_per_epoch)
    schedule = by_round if args.reveal_blocks is None else after_blocks(args.reveal_blocks)
    config = MinerConfig(
        hf_repo_id=args.hf_repo_id,
        dataset_path=args.dataset_path.expanduser(),
        competition=cli.read_competition(args),
        work_dir=files.check_private_folder(args.work_dir, "--work_dir", marks=cli.WORK_DIR_MARKS),
        has_target=cli.make_target_check(args),
        is_forced=args.force,
        poll_s=poll_s,
        hub_token=ensure_token(cli.hub_token()),
    )
    confirm = make_confirm(args.yes)
    with cli.open_chain(args) as chain:
        if args.seal:
            published = seal_dataset(config, chain, schedule=schedule, confirm=confirm)
        else:
            published = publish_dataset(config, chain, confirm=confirm)
    if published is None:
        return 1
    print(f"{published.record} committed in block {published.block}")
    return 0


def make_confirm(assume_yes: bool) -> Callable[[str], bool]:
    """Shows on stderr what is to be published, and asks on the terminal unless `assume_yes`.

    Raises: ConfigError when there is nobody to ask.
    """
    if not assume_yes and not sys.stdin.isatty():
        raise ConfigError("--yes is needed where nobody can be asked: the standard input is no terminal")

    def confirm(what: str) -> bool:
        print(f"About to publish:\n{what}", file=sys.stderr)
        if assume_yes:
            return True
        print("Publish? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
        print("Nothing is published.", file=sys.stderr)
        return False

    return confirm


if __name__ == "__main__":
    sys.exit(main())
