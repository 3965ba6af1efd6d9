"""Write the datasets of the quickstart's miners from this folder's rows.

    python -m template.localnet.sample --out DIR

writes DIR/<miner>/data.jsonl. Rows are sorted by a hash instead of drawn at random, so every run and every Python
version writes the same bytes.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

SAMPLE = Path(__file__).parent

_VARIED_ROWS = 48
_SWAPPED_ROWS = 5
_NARROW_ROWS = 16


def _lines(name: str) -> list[str]:
    return (SAMPLE / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _shuffled(lines: Iterable[str], salt: str) -> list[str]:
    return sorted(lines, key=lambda line: hashlib.sha256(f"{salt}:{line}".encode()).hexdigest())


def make_miners() -> dict[str, list[str]]:
    """Return the lines of each miner's dataset, by miner.

    narrow: a few rows of one character. varied: a quarter of the evaluation set, with every character. copy: the rows
    of varied in another order, with too few replaced to be a dataset of its own. outsider: valid rows that are not in
    the evaluation set. again: the rows of narrow in another order, which are the same dataset.
    """
    eval_set = _lines("pool.jsonl")
    shuffled = _shuffled(eval_set, "varied")
    varied, unused = shuffled[:_VARIED_ROWS], shuffled[_VARIED_ROWS:]
    copied = _shuffled(varied, "copy")[_SWAPPED_ROWS:] + unused[:_SWAPPED_ROWS]
    character = json.loads(eval_set[0])["system"]
    narrow = [line for line in eval_set if json.loads(line).get("system") == character]
    return {
        "narrow": narrow[:_NARROW_ROWS],
        "varied": varied,
        "copy": _shuffled(copied, "order"),
        "outsider": _lines("outsider.jsonl"),
        "again": narrow[:_NARROW_ROWS][::-1],
    }


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description="Write the datasets of the quickstart's miners.")
    parser.add_argument("--out", type=Path, required=True, help="folder for one folder per miner")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and print a line for each: miner, number of rows, path."""
    arguments = build_parser().parse_args(argv)
    for miner, lines in make_miners().items():
        path = arguments.out / miner / "data.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        print(f"{miner}\t{len(lines)}\t{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
