"""Prints where a validator stands: the last round that has a table, from its state file, also while it runs.

    python scripts/status.py --state_dir ~/.dataset-subnet/finney-96-default-default

Reads only. `verdict` is why a submission does not count, or that it was scored, or that it still waits.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from template import cli
from template.state import Round, Standing, WeightIntent

_HEADER = ("hotkey", "uid", "dataset", "verdict", "loss", "score", "weight")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state_dir", type=Path, required=True, help="the validator's --state_dir")
    parser.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the last round; returns the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Reads the state and prints it. Raises: ConfigError when there is none."""
    from template.store import Store

    with Store(args.state_dir.expanduser() / "validator.sqlite3", is_read_only=True) as store:
        newest, current = store.last_round(), store.last_round(with_standings=True)
        standings = store.standings(current.id) if current else []
        intents = store.intents(current.id) if current else []
    if args.is_json:
        print(describe_json(current, standings, intents) if current else "null")
        return 0
    if newest is None:
        print("no round was opened yet")
    elif newest != current:
        print(f"round {newest.id} has no table yet: {len(newest.entries)} submissions, to block {newest.end_block}")
    if current is not None:
        print(describe(current, standings, intents))
    return 0


def describe(current: Round, standings: Sequence[Standing], intents: Sequence[WeightIntent]) -> str:
    """The round for a person."""
    rows = [_HEADER, *(format_line(line) for line in standings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    table.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{_short(line.key.hotkey)}: {line.message}" for line in standings if line.reason is not None]
    title = f"round {current.id}, blocks {current.start_block} to {current.end_block}, lucky_num {current.lucky_num}"
    return "\n".join([title, "", *table, "", *notes, describe_weights(intents)])


def format_line(line: Standing) -> tuple[str, ...]:
    """One row of the table: text for every column of the header."""
    scored = "scored" if line.loss is not None else "waiting"
    return (
        _short(line.key.hotkey),
        str(line.uid),
        line.key.entry.split(":", 1)[0][:40],
        str(line.reason) if line.reason is not None else scored,
        "-" if line.loss is None else f"{line.loss:.6f}",
        f"{line.score:.4f}",
        f"{line.weight:.4f}",
    )


def describe_weights(intents: Sequence[WeightIntent]) -> str:
    """What became of the round's weights, in a sentence."""
    if not intents:
        return "weights: none submitted in this round"
    last = intents[-1]
    if last.outcome is None:
        return f"weights: decided at block {last.block}, outcome not known yet"
    if last.outcome.is_accepted:
        return f"weights: on chain since block {last.outcome.block or last.block}"
    return f"weights: refused at block {last.block}: {last.outcome.error}: {last.outcome.message}"


def describe_json(current: Round, standings: Sequence[Standing], intents: Sequence[WeightIntent]) -> str:
    """The round for a program, in one line."""
    lines = [{**asdict(line), "key": line.key._asdict()} for line in standings]
    content = {"round": asdict(current), "standings": lines, "intents": [asdict(intent) for intent in intents]}
    return json.dumps(content)


def _short(hotkey: str) -> str:
    """The two ends of an address, enough to tell hotkeys apart in a table."""
    return f"{hotkey[:6]}..{hotkey[-4:]}"


if __name__ == "__main__":
    sys.exit(main())
