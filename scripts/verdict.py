"""Say what validators recorded about a hotkey's dataset, and why.

    python scripts/verdict.py --hotkey ADDRESS --rounds owner/rounds
    python scripts/verdict.py --hotkey ADDRESS --rounds VALIDATOR --netuid 96 --subtensor.network finney

--rounds takes round files, folders, dataset repos of the Hub, and hotkeys of validators, whose repo is found on chain.
Needs no wallet. Exit status: 0 shown, 2 or 3 the command line is wrong or the hotkey is in no file, 5 the Hub or the
chain did not answer, 9 a signature is not valid.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from template import cli
from template.arguments import Parser
from template.console import BAD, GOOD, is_terminal, make_grid, make_table, show, verdict_style
from template.errors import ConfigError
from template.receipts.round_file import RoundHeader, TableLine
from template.receipts.sources import read_signed
from template.site.words import (
    Verdict,
    explain_loss,
    explain_verdict,
    explain_weight,
    ledger_line,
    paid_since,
    weights_outcome,
)
from template.terminal import escape, print_result

_BAD_SIGNATURE_STATUS = 9
# Changes of the verdict that are printed.
_CHANGES = 10


def build_parser() -> Parser:
    parser = cli.make_parser("verdict", __doc__)
    parser.add_argument("--hotkey", required=True, metavar="ADDRESS", help="the miner's hotkey")
    cli.add_round_arguments(parser)
    parser.add_argument("--json", dest="is_json", action="store_true", help="print one JSON object")
    cli.add_logging_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts and return the exit status."""
    return cli.run_main(build_parser(), argv, run)


def run(args: argparse.Namespace) -> int:
    """Read the files and print the verdicts of each validator."""
    from template.chain.wallets import verify_signature

    headers: list[RoundHeader] = []
    faults: list[str] = []
    for source in cli.open_round_sources(args):
        for path in source.paths:
            try:
                item = read_signed(path, source, verify_signature)
            except ConfigError as error:
                faults.append(str(error))
                continue
            headers.append(item.header)
            faults += [] if item.fault is None else [f"{path.name}: {item.fault}"]
    by_signer: dict[str, list[RoundHeader]] = {}
    for header in sorted(headers, key=lambda header: (header.start_block, header.opened_block), reverse=True):
        if any(line.hotkey == args.hotkey for line in header.table):
            by_signer.setdefault(header.signer or "nobody", []).append(header)
    if not by_signer:
        raise ConfigError(
            f"--hotkey {args.hotkey}: in none of the {len(headers)} round files; a dataset is in the first round that"
            " starts after its commitment can be read on chain"
        )
    verdicts = {signer: describe(args.hotkey, headers) for signer, headers in by_signer.items()}
    if args.is_json:
        print_result(json.dumps({"hotkey": args.hotkey, "validators": verdicts, "faults": faults}))
    elif is_terminal():
        show(*make_tables(verdicts, faults))
    else:
        lines = [line for signer, verdict in verdicts.items() for line in format_verdict(signer, verdict)]
        lines += [f"NOT VALID: {fault}" for fault in faults] or ["signatures: valid"]
        print_result("\n".join(escape(line) for line in lines))
    return _BAD_SIGNATURE_STATUS if faults else 0


def describe(hotkey: str, headers: Sequence[RoundHeader]) -> dict[str, Any]:
    """Return the newest verdict of one validator, and when it was another before.

    headers: newest first.
    """
    newest = headers[0]
    line = find_line(hotkey, newest)
    verdict = verdict_on(line, newest)
    since = paid_since(hotkey, iter(headers)) if line.weight > 0.0 else None
    return {
        "start_block": newest.start_block,
        "end_block": newest.end_block,
        "rounds": len(headers),
        "dataset": line.entry,
        "verdict": verdict.code,
        "why": verdict.why,
        "loss": line.loss,
        "loss_why": explain_loss(line, newest),
        "score": line.score,
        "weight": line.weight,
        "weight_why": explain_weight(line, newest),
        "weights": weights_outcome(newest),
        "paid_since_block": since,
        "evaluations": [
            {"number": run.number, "lucky_num": run.lucky_num, "loss": run.loss, "receipt": run.receipt}
            for run in newest.evaluations
            if run.hotkey == hotkey
        ],
        "earlier": [*changes(hotkey, headers)][:_CHANGES],
    }


def changes(hotkey: str, headers: Sequence[RoundHeader]) -> Iterator[dict[str, Any]]:
    """Yield the earlier rounds in which dataset or verdict became another, newest first."""
    for header, before in itertools.pairwise([*headers, None]):
        assert header is not None
        line = find_line(hotkey, header)
        state = (line.entry, verdict_on(line, header).code)
        earlier = None if before is None else find_line(hotkey, before)
        if earlier is None or before is None or (earlier.entry, verdict_on(earlier, before).code) != state:
            yield {"start_block": header.start_block, "dataset": state[0], "verdict": state[1], "loss": line.loss}


def verdict_on(line: TableLine, header: RoundHeader) -> Verdict:
    return explain_verdict(line, header, ledger_line(line, header))


def find_line(hotkey: str, header: RoundHeader) -> TableLine:
    return next(line for line in header.table if line.hotkey == hotkey)


def make_lines(verdict: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return label, text and style of each line about the newest verdict."""
    loss = "-" if verdict["loss"] is None else f"{verdict['loss']:.6f}"
    since = "" if verdict["paid_since_block"] is None else f" It is paid since block {verdict['paid_since_block']}."
    return [
        ("dataset", verdict["dataset"], ""),
        ("verdict", f"{verdict['verdict']}. {verdict['why']}", verdict_style(verdict["verdict"])),
        ("loss", f"{loss}. {verdict['loss_why']}", ""),
        ("weight", f"{verdict['weight']:.2%}. {verdict['weight_why']}{since}", ""),
        ("weights", verdict["weights"], ""),
    ]


def make_title(signer: str, verdict: dict[str, Any]) -> str:
    return f"validator {signer}, round of blocks {verdict['start_block']} to {verdict['end_block']}"


def make_tables(verdicts: dict[str, dict[str, Any]], faults: Sequence[str]) -> Iterator[RenderableType]:
    """Yield what a terminal shows."""
    for signer, verdict in verdicts.items():
        yield Text(escape(make_title(signer, verdict)), style="bold")
        yield make_grid(make_lines(verdict))
        if verdict["evaluations"]:
            table = make_table("evaluation", "seed", "loss", "receipt", numbers=("evaluation", "seed", "loss"))
            for run in verdict["evaluations"]:
                table.add_row(str(run["number"]), str(run["lucky_num"]), repr(run["loss"]), run["receipt"] or "-")
            yield from ("", table)
        table = make_table("since block", "verdict", "loss", "dataset", numbers=("since block", "loss"))
        for change in verdict["earlier"]:
            loss = "-" if change["loss"] is None else f"{change['loss']:.6f}"
            code = Text(change["verdict"], style=verdict_style(change["verdict"]))
            table.add_row(str(change["start_block"]), code, loss, escape(change["dataset"]))
        yield from ("", table, "")
    yield make_grid([("NOT VALID", fault, BAD) for fault in faults] or [("signatures", "valid", GOOD)], indent=0)


def format_verdict(signer: str, verdict: dict[str, Any]) -> list[str]:
    """Format one validator's verdict in lines."""
    return [
        make_title(signer, verdict),
        *(f"  {label:<8} {text}" for label, text, _ in make_lines(verdict)),
        *(
            f"  seed     {run['lucky_num']}, evaluation {run['number']}: loss {run['loss']!r}, receipt {run['receipt']}"
            for run in verdict["evaluations"]
        ),
        *(
            f"  since    block {change['start_block']}: {change['verdict']}, {change['dataset']}"
            for change in verdict["earlier"]
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
