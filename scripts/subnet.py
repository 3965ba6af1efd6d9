"""All commands of the subnet as one: `subnet COMMAND --help` explains each.

    subnet localnet --dir /tmp/localnet
    subnet validator --netuid 96 --wallet.name my_coldkey --wallet.hotkey my_hotkey

An installed package has it without a clone. In a clone these are the same commands as the files in neurons/ and
scripts/, which the commands' own help names.
"""

import pkgutil
import sys
from collections.abc import Callable, Sequence

from template import __version__
from template.arguments import Parser

# Command: its function and its help. A new command is one line here.
COMMANDS = {
    "validator": ("neurons.validator:main", "run a validator"),
    "miner": ("neurons.miner:main", "check, commit and upload a dataset"),
    "score": ("scripts.compute_loss:main", "compute a dataset's loss offline, or replay a receipt"),
    "check": ("scripts.check_dataset:main", "check a dataset for all that a validator would reject"),
    "status": ("scripts.status:main", "show a validator's work, weights and failures"),
    "audit": ("scripts.audit:main", "check a validator's round files and replay its losses"),
    "doctor": ("scripts.doctor:main", "check this machine and the settings before a start"),
    "verdict": ("scripts.verdict:main", "say what validators recorded about a hotkey, and why"),
    "leaderboard": ("scripts.leaderboard:main", "write a leaderboard for the browser from round files"),
    "calibrate": ("scripts.calibrate:main", "measure the noise of a competition and propose its values"),
    "select_rows": ("scripts.select_rows:main", "propose a dataset by a search for better rows"),
    "localnet": ("template.localnet.__main__:main", "run a chain and a Hub on this machine"),
}


def build_parser() -> Parser:
    listed = "\n".join(f"  {name:12}{text}" for name, (_, text) in COMMANDS.items())
    parser = Parser(prog="subnet", description=__doc__, epilog=f"commands:\n{listed}")
    parser.add_argument("--version", action="version", version=f"dataset-subnet {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command with the other arguments; return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(words[:1])
    function: Callable[[Sequence[str]], int] = pkgutil.resolve_name(COMMANDS[args.command][0])
    return function(words[1:])


if __name__ == "__main__":
    sys.exit(main())
