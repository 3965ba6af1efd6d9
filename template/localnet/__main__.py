"""Brings up a local network and keeps it running until it is interrupted.

    python -m template.localnet --dir /tmp/localnet --miners alice,bob

When it is ready, DIR/localnet.json says what to give as --subtensor.network, --netuid, --wallet.path, --competition
and HF_ENDPOINT; the wallets are `validator`, `owner` and the miners, each with the hotkey `default`, and the Hub token
of a miner NAME is `hf_local_NAME`.
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
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="localnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="new folder for everything")
    parser.add_argument("--miners", default="alice,bob", help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--sample", type=Path, default=_SAMPLE, help="folder with pool.jsonl and competition.yaml")
    parser.add_argument("--block_seconds", type=float, default=1.0, help="time of a block (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="of the hub; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--logging.debug", dest="is_debug", action="store_true", help="log details")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until interrupted; returns the exit status."""
    args = build_parser().parse_args(argv)
    configure_logging(is_debug=args.is_debug)
    quiet_libraries()
    try:
        return serve(args)
    except SubnetError as error:
        logger.error("{}: {}", type(error).__name__, error)
        return error.exit_code


def serve(args: argparse.Namespace) -> int:
    """Builds the network, says where it is, and waits for a signal."""
    from template.localnet.hub.server import HubServer
    from template.localnet.network import create_localnet

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with HubServer(args.dir / "hub", args.port) as hub:
        net = create_localnet(
            args.dir,
            hub,
            sample=args.sample,
            miners=[name.strip() for name in args.miners.split(",") if name.strip()],
            block_time_s=args.block_seconds,
        )
        logger.info("local network ready: {}", net.folder / "localnet.json")
        for name, value in net.describe().items():
            logger.info("  {} = {}", name, value)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
