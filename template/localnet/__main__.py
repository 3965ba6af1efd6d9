"""Run a local network until it is interrupted: a chain with one subnet, its node and wallets.

    python -m template.localnet --dir /tmp/localnet --netuid 7 --miners alice,bob --tempo 100

With a dataset Hub and a competition of this repository's subnet:

    python -m template.localnet --dir /tmp/localnet --sample

Once it is ready, DIR/localnet.json holds the values for --subtensor.network, --netuid, --wallet.path, --competition
and HF_ENDPOINT. The wallets are the validators', the miners' and `owner`, each with the hotkey `default`; the Hub token
of a miner NAME is `hf_local_NAME`. Rules in DIR/hub/answers.json make the hub refuse requests as the real one does:
docs/hub.md.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from template.arguments import Parser, check_home, check_port
from template.errors import SubnetError
from template.stop_request import StopRequest
from template.telemetry.logging import configure_logging, quiet_libraries

if TYPE_CHECKING:
    from template.localnet.network import ChainSettings, LocalNet

_SAMPLE = Path(__file__).with_name("sample")


def build_parser() -> Parser:
    """Build the command line."""
    parser = Parser(prog="localnet", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="new folder for everything")
    parser.add_argument("--logging.debug", dest="is_debug", action="store_true", help="log details")
    add = parser.add_argument_group("node").add_argument
    add("--port", type=int, default=9944, help="0 takes a free one")
    add = parser.add_argument_group("chain").add_argument
    add("--netuid", type=int, default=96, help="the subnet's number")
    add("--validators", default="validator", help="wallets with stake and permit")
    add("--miners", default="alice,bob", help="wallets with a uid")
    add(
        "--block_seconds",
        type=float,
        default=1.0,
        help="block time; 0 makes a block for each call",
    )
    add("--tempo", type=int, default=50_000, help="blocks of an epoch")
    add("--weights_rate_limit", type=int, default=1, help="blocks between two weights")
    add(
        "--commit_reveal",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="timelock weights, as the chain does by default; without, they are public at once",
    )
    add(
        "--finality_lag",
        type=int,
        default=0,
        help="blocks from the newest to the newest final one (default: 0)",
    )
    add = parser.add_argument_group("Hub and competition").add_argument
    add(
        "--sample",
        type=Path,
        nargs="?",
        const=_SAMPLE,
        metavar="DIR",
        help="start a Hub with the competition of DIR, pool.jsonl and competition.yaml, or of the package's own sample",
    )
    add("--hub_port", type=int, default=0, help="0, the default, takes a free one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    args = build_parser().parse_args(argv)
    configure_logging(is_debug=args.is_debug)
    quiet_libraries()
    try:
        check_home()
        return serve(args)
    except SubnetError as error:
        logger.error("{}", error)
        return error.exit_code


def serve(args: argparse.Namespace) -> int:
    """Create the network, log where it is, and wait for a signal."""
    from template.localnet.node.server import NodeServer

    check_port("--port", args.port)
    if args.sample is not None:
        check_port("--hub_port", args.hub_port)
    stop = StopRequest()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    is_new = not args.dir.exists()
    with ExitStack() as stack:
        try:
            net = _create(args, stack)
        except SubnetError:
            # So that the next start can name it again.
            if is_new:
                shutil.rmtree(args.dir, ignore_errors=True)
            raise
        node = stack.enter_context(NodeServer(net.chain_file, args.port))
        net.announce(node.url)
        logger.info("local network ready file={}", net.folder / "localnet.json")
        for name, value in net.describe(node.url).items():
            logger.info("  {}={}", name, value)
        stop.wait()
    return 0


def _create(args: argparse.Namespace, stack: ExitStack) -> "LocalNet":
    """Create the network's files; start its Hub for a --sample."""
    from template.localnet.hub.server import HubServer
    from template.localnet.network import LocalNet, create_chain, make_folder, write_competition

    hub = None if args.sample is None else stack.enter_context(HubServer(args.dir / "hub", args.hub_port))
    net = LocalNet(args.dir.resolve(), "" if hub is None else hub.endpoint, args.netuid)
    make_folder(net)
    if hub is not None:
        write_competition(net, hub, args.sample)
    create_chain(net, _settings(args))
    return net


def _settings(args: argparse.Namespace) -> "ChainSettings":
    from template.localnet.network import ChainSettings

    return ChainSettings(
        netuid=args.netuid,
        validators=_names(args.validators),
        miners=_names(args.miners),
        block_time_s=args.block_seconds,
        tempo=args.tempo,
        weights_rate_limit=args.weights_rate_limit,
        commit_reveal=args.commit_reveal,
        finality_lag=args.finality_lag,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
