"""Publish one dataset: check, confirm, commit on chain, upload to the Hub.

    python neurons/miner.py --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey \\
        --hf_repo_id me/my-dataset --dataset_path data.jsonl

The commitment names a digest of the file, and the upload follows once the commitment is final, so a copy of the file
always commits later. With --seal the commitment is on chain at once, but encrypted until shortly before the validators'
next round. The file stays on this machine until then: keep the miner running, it waits and uploads. After any
interruption repeat the same command; it continues, and commits nothing twice.

Before it asks, it compares the dataset with all that are committed on the subnet, and refuses a certain duplicate.
--dry_run stops there.

The Hub token comes from HF_TOKEN or the login of the Hub's own tools. Exit status: 0 the commitment is final and the
file public, or --dry_run found nothing against it, 1 declined, 2 or 3 wrong command line or setting, 4 this machine
failed, 5 the Hub or the chain did not answer, 6 a validator would reject the dataset (the message has the reason).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from template import cli, files
from template.arguments import Check, Parser
from template.competition import CommitmentRecord
from template.config import load_competition, load_incentives
from template.errors import ConfigError, SubmissionError, SubnetError
from template.telemetry.logging import write_stderr
from template.terminal import print_result

if TYPE_CHECKING:
    from template.doctor.setup import Setup


def check_repo(args: argparse.Namespace) -> None:
    """Check that a commitment can name the repo. Raises: ConfigError."""
    try:
        if args.hf_repo_id is not None:
            CommitmentRecord(args.hf_repo_id, load_competition(args.competition).id, "0" * 64)
    except SubmissionError as error:
        raise ConfigError(f"--hf_repo_id {args.hf_repo_id}: {error}") from error


def check_seal(args: argparse.Namespace) -> None:
    """Check that --reveal_blocks goes with --seal. Raises: ConfigError."""
    if args.reveal_blocks is not None and not args.seal:
        raise ConfigError("--reveal_blocks needs --seal")


# Made before any work, so that one run names all that is missing.
CHECKS: tuple[Check, ...] = (
    cli.check_wallet,
    cli.check_chain,
    lambda args: cli.require_hub_token(),
    lambda args: cli.check_dataset_file(args.dataset_path, "--dataset_path"),
    cli.check_competition,
    cli.check_score_arguments,
    lambda args: cli.check_poll_seconds(args.poll_seconds),
    check_repo,
    check_seal,
)


def build_parser() -> Parser:
    parser = cli.make_parser("miner", __doc__, checks=CHECKS)
    add, work_dir = parser.add_argument, cli.DEFAULT_STATE_DIR / "miner"
    force_help = "publish what a validator will reject, and replace a sealed commitment that is not revealed yet"
    add("--hf_repo_id", required=True, help="dataset repo on the Hub, owner/name; created if missing")
    add("--dataset_path", type=Path, required=True, help="the file, or a folder with a data.jsonl")
    add("--yes", action="store_true", help="publish without confirmation")
    add("--dry_run", action="store_true", help="check, compare and show what would be published; publish nothing")
    add("--force", action="store_true", help=force_help)
    _add_seal_arguments(parser)
    cli.add_chain_arguments(parser)
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    add("--work_dir", type=Path, default=work_dir, help="folder of the evaluation set and of the miner's journals")
    add("--poll_seconds", type=float, default=6.0, help="between reads of the chain")
    cli.add_logging_arguments(parser)
    return parser


def _add_seal_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sealed submissions").add_argument
    epoch_help = "blocks per round of the validators; a round starts at each multiple (default: the competition's)"
    add("--seal", action="store_true", help="hide commitment and file until the next round starts")
    add("--reveal_blocks", type=int, metavar="N", help="reveal N blocks from now and upload at once")
    add("--blocks_per_epoch", type=int, help=epoch_help)


def main(argv: Sequence[str] | None = None) -> int:
    """Publish, print the commitment and its block, and return the exit status."""
    return cli.run_main(build_parser(), argv, run, is_private=True, diagnose=diagnose)


def diagnose(args: argparse.Namespace, faults: Sequence[SubnetError]) -> Sequence[SubnetError]:
    """Add the faults of machine, Hub and chain with which the miner cannot run."""
    from template.doctor.start import find_start_faults

    return find_start_faults(make_setup(args), faults, lambda: make_work_dir(args))


def make_setup(args: argparse.Namespace) -> "Setup":
    """Return what `template.doctor` has to check."""
    from template.doctor.setup import Role, Setup

    return Setup(args=args, role=Role.MINER, state_dir=args.work_dir.resolve(), settings=CHECKS)


def make_work_dir(args: argparse.Namespace) -> Path:
    """Create --work_dir, or close it to other users. Raises: ConfigError."""
    return files.check_private_folder(args.work_dir, "--work_dir", marks=cli.WORK_DIR_MARKS)


def run(args: argparse.Namespace) -> int:
    """Publish one dataset. Raises: SubnetError."""
    from template.miner.draft import MinerConfig
    from template.miner.publish import publish_dataset
    from template.miner.sealed import after_blocks, at_round_start, seal_dataset

    competition, incentives = load_competition(args.competition), load_incentives(args.competition)
    period = incentives.blocks_per_epoch if args.blocks_per_epoch is None else args.blocks_per_epoch
    by_round = at_round_start(period)
    schedule = by_round if args.reveal_blocks is None else after_blocks(args.reveal_blocks)
    work_dir = make_work_dir(args)
    config = MinerConfig(
        hf_repo_id=args.hf_repo_id,
        dataset_path=args.dataset_path,
        competition=competition,
        work_dir=work_dir,
        has_target=cli.make_target_check(args),
        incentives=replace(incentives, blocks_per_epoch=period),
        is_forced=args.force,
        is_dry_run=args.dry_run,
        poll_s=args.poll_seconds,
        hub_token=cli.require_hub_token(),
    )
    confirm = show_only if args.dry_run else make_confirm(args.yes)
    with cli.open_chain(args) as chain:
        if args.seal:
            published = seal_dataset(config, chain, schedule=schedule, confirm=confirm)
        else:
            published = publish_dataset(config, chain, confirm=confirm)
    if published is None:
        return 0 if args.dry_run else 1
    print_result(f"{published.record} committed in block {published.block}")
    return 0


def show_only(text: str) -> bool:
    """Show what would be published, and decline."""
    write_stderr(f"Would publish:\n{text}\nDry run: nothing was published.\n")
    return False


def make_confirm(assume_yes: bool) -> Callable[[str], bool]:
    """Return a function that asks on the terminal. Raises: ConfigError without one."""
    if not assume_yes and not (sys.stdin and sys.stdin.isatty()):
        raise ConfigError("standard input is not a terminal, so --yes is needed")

    def confirm(text: str) -> bool:
        write_stderr(f"About to publish:\n{text}\n")
        if assume_yes:
            return True
        write_stderr("Publish? [y/N] ")
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
        write_stderr("Nothing was published.\n")
        return False

    return confirm


if __name__ == "__main__":
    sys.exit(main())
