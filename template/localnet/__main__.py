"""Run a local network until it is interrupted.

    python -m template.localnet --dir /tmp/localnet --miners alice,bob

Once it is ready, DIR/localnet.json holds the values for --subtensor.network, --netuid, --wallet.path, --competition
and HF_ENDPOINT. The wallets are `validator`, `owner` and the miners, each with the hotkey `default`; the Hub token of
a miner NAME is `hf_local_NAME`.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from template.errors import SubnetError
from template.telemetry.logging import configure_logging, quiet_libraries

_SAMPLE = Path(__file__).resolve().parents[2] / "contrib" / "sample"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="localnet", description=__doc__, formatter_class=style)
    parser.add_argument("--dir", type=Path, required=True, help="new folder for everything")
    parser.add_argument("--miners", default="alice,bob", help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--sample", type=Path, default=_SAMPLE, help="folder with pool.jsonl and competition.yaml")
    parser.add_argument("--block_seconds", type=float, default=1.0, help="block time (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=9944, help="the node's port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--hub_port", type=int, default=0, help="the Hub's port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument("--logging.debug", dest="is_debug", action="store_true", help="log details")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    args = build_parser().parse_args(argv)
    configure_logging(is_debug=args.is_debug)
    quiet_libraries()
    try:
        return serve(args)
    except SubnetError as error:
        logger.error("{}: {}", type(error).__name__, error)
        return error.exit_code


def serve(args: argparse.Namespace) -> int:
    """Create the network, log where it is, and wait for a signal."""
    from template.localnet.hub.server import HubServer
    from template.localnet.network import create_localnet
    from template.localnet.node.server import NodeServer

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with HubServer(args.dir / "hub", args.hub_port) as hub:
        net = create_localnet(
            args.dir,
            hub,
            sample=args.sample,
            miners=[name.strip() for name in args.miners.split(",") if name.strip()],
            block_time_s=args.block_seconds,
        )
        with NodeServer(net.chain_file, args.port) as node:
            net.announce(node.url)
            logger.info("local network ready file={}", net.folder / "localnet.json")
            for name, value in net.describe(node.url).items():
                logger.info("  {}={}", name, value)
            stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
