"""Check a dataset for all that a validator would reject, before it is published.

    python scripts/check_dataset.py --dataset_path data.jsonl --offline
    python scripts/check_dataset.py --dataset_path data.jsonl --netuid 96 --hf_repo_id me/my-dataset

Without --offline it is compared with all datasets that are committed on the subnet now, as if it were committed after
them; with --hotkey or --wallet.*, as of that hotkey's current commitment if that is this very file. Earlier versions of
other miners' datasets, and confirmed ones of hotkeys that left, are no longer on chain and are not compared, though a
validator compares them. It also prints from which block the dataset would count.

The result goes to stdout, progress to stderr. Exit status: 0 no problem, 2 or 3 the command line or another setting is
wrong, 4 this machine failed, 5 not enough could be read, 6 a validator would reject it.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from template import cli, constants, files
from template.arguments import Check, Parser
from template.competition import CommitmentRecord, Competition
from template.config import load_competition, load_incentives
from template.console import is_terminal, show
from template.data.rows import RowKey, content_digest
from template.errors import ConfigError, RemoteError, SubmissionError
from template.miner.check import inspect_file
from template.miner.check_report import CheckOutcome, Report, describe, report_tables, to_json
from template.miner.competitors import (
    SubnetSnapshot,
    compare_datasets,
    first_counted_block,
    possible_commit_blocks,
)
from template.terminal import print_result

if TYPE_CHECKING:
    from template.data.eval_set import EvalSetIndex

_STATUS = {
    CheckOutcome.OK: 0,
    CheckOutcome.INCONCLUSIVE: RemoteError.exit_code,
    CheckOutcome.REJECTED: SubmissionError.exit_code,
}


def check_wallet(args: argparse.Namespace) -> None:
    """Check the wallet, if one is named. Raises: ConfigError."""
    if not args.is_offline and cli.has_wallet(args):
        cli.check_wallet(cli.name_wallet(args))


# Made before any work, so that one run names all that is missing.
CHECKS: tuple[Check, ...] = (
    lambda args: cli.check_dataset_file(args.dataset_path, "--dataset_path"),
    check_wallet,
    cli.check_chain,
    cli.check_competition,
    cli.check_score_arguments,
    lambda args: cli.hub_token(),
)


def build_parser() -> Parser:
    # --netuid is declared again: --offline needs none.
    parser = cli.make_parser("check_dataset", __doc__, checks=CHECKS, conflict_handler="resolve")
    add, work_dir = parser.add_argument, cli.DEFAULT_STATE_DIR / "miner"
    add("--dataset_path", type=Path, required=True, help="the file, or a folder with a data.jsonl")
    add("--offline", dest="is_offline", action="store_true", help="check only the file and its rows")
    add("--hf_repo_id", help="its dataset repo on the Hub, owner/name")
    cli.add_reader_arguments(parser)
    add("--netuid", type=int, help="the subnet's number; needed unless --offline")
    cli.add_competition_arguments(parser)
    cli.add_score_arguments(parser)
    add("--work_dir", type=Path, default=work_dir, help="for the evaluation set and other miners' datasets")
    add("--json", dest="is_json", action="store_true", help="print one JSON object")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print, and return the exit status."""
    parser = build_parser()
    check_arguments(parser, parser.parse_args(argv))
    return cli.run_main(parser, argv, run)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 and a line on stderr when arguments exclude each other."""
    if not args.is_offline and args.netuid is None:
        parser.error("expected --netuid, or --offline")
    if args.hotkey and cli.has_wallet(args):
        parser.error("--hotkey and --wallet.* exclude each other")


def run(args: argparse.Namespace) -> int:
    """Check the dataset and print the report. Raises: SubnetError."""
    from template.data.eval_set import read_eval_set_index
    from template.hub.datasets import fetch_eval_set

    competition = load_competition(args.competition)
    content = read_file(args.dataset_path)
    home = files.check_private_folder(args.work_dir, "--work_dir", marks=cli.WORK_DIR_MARKS)
    work_dir = files.check_folder(home / competition.digest[:12], "--work_dir")
    eval_file = fetch_eval_set(competition, work_dir / "eval_data", None, cli.hub_token())
    pool, has_target = read_eval_set_index(eval_file), cli.make_target_check(args)
    file = inspect_file(content, pool, max_rows=competition.rows, has_target=has_target, eval_file=eval_file)
    subnet, unread = (None, "") if args.is_offline else read_subnet(args, competition, pool, work_dir / "neighbours")
    comparison, counts_from = None, None
    if subnet is not None:
        sha256 = hashlib.sha256(content).hexdigest()
        counted_as = pool.dedup_keys(row.key for row in file.counted)
        rows = [RowKey(row.line, key) for row, key in zip(file.counted, counted_as, strict=True)]
        comparison = compare_datasets(
            rows, subnet, possible_commit_blocks(subnet.own, sha256, args.hf_repo_id, subnet.block + 1)
        )
        digest, incentives = content_digest(row.key for row in file.counted), load_incentives(args.competition)
        counts_from = first_counted_block(subnet.own, digest, subnet.block, incentives)
    commitment, bad_commitment = preview_commitment(args.hf_repo_id, competition)
    report = Report(
        file=file,
        subnet=subnet,
        comparison=comparison,
        counts_from=counts_from,
        unread=unread,
        commitment=commitment,
        bad_commitment=bad_commitment,
    )
    if args.is_json:
        print_result(json.dumps(to_json(report)))
    elif is_terminal():
        show(*report_tables(report))
    else:
        print_result(describe(report))
    return _STATUS[report.outcome]


def read_file(path: Path) -> bytes:
    path = path / constants.DATA_FILE if path.is_dir() else path
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset_path {path}: cannot be read: {error.strerror or error}") from error


def read_subnet(
    args: argparse.Namespace, competition: Competition, pool: "EvalSetIndex", folder: Path
) -> tuple[SubnetSnapshot | None, str]:
    """Read all commitments, or return why the chain cannot be read."""
    from template.miner.competitors import fetch_competitors

    needs_wallet = cli.has_wallet(args)
    try:
        with cli.open_reader(args) as chain:
            view = chain.view()
            hotkey = chain.hotkey if needs_wallet else args.hotkey
    except RemoteError as error:
        return None, str(error)
    return fetch_competitors(view, competition, pool, folder, hotkey), ""


def preview_commitment(repo: str | None, competition: Competition) -> tuple[str | None, str]:
    """Return the commitment with zeros for the digest, or its error."""
    if repo is None:
        return None, ""
    try:
        return str(CommitmentRecord(repo, competition.id, "0" * 64)), ""
    except SubmissionError as error:
        return None, str(error)


if __name__ == "__main__":
    sys.exit(main())
