"""The validator's own groups of arguments."""

import argparse
from pathlib import Path

from template import cli
from template.arguments import check_port

# What a public run shows of the command line. Paths, endpoints and webhooks may hold names or secrets.
PUBLIC_FLAGS = (
    *("auto_update", "device", "dont_set_weights", "dtype", "executor", "keep_days", "lucky_num", "lucky_num_from"),
    *("max_downloads", "offline", "poll_seconds", "publish_rounds", "ray_accelerator", "ray_gpus", "ray_workers"),
)


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --state_dir and the folders that are in it by default."""
    add = parser.add_argument_group("files").add_argument
    default = f"{cli.DEFAULT_STATE_DIR}/NETWORK-NETUID-COLDKEY-HOTKEY, by the names given here"
    add("--state_dir", type=Path, help=f"everything below (default: {default})")
    add("--cache_dir", type=Path, help="downloaded models and files (default: STATE_DIR/cache)")
    add("--data_dir", type=Path, help="the miners' datasets (default: STATE_DIR/data)")
    add("--eval_data_dir", type=Path, help="the evaluation set (default: STATE_DIR/eval_data)")
    add("--receipt_dir", type=Path, help="receipts as files (default: STATE_DIR/receipts)")
    add("--round_dir", type=Path, help="the rounds' signed files (default: STATE_DIR/rounds)")
    publish_help = "also publish the rounds' files in this dataset repo of the Hub, and announce it on chain"
    add("--publish_rounds", metavar="REPO", help=publish_help)
    bootstrap_help = "for rounds before the first of this state: another validator's signed round files, in a folder or"
    bootstrap_help += " in a dataset repo of the Hub (owner/name)"
    add("--bootstrap_rounds", metavar="DIR_OR_REPO", help=bootstrap_help)
    add("--keep_days", type=float, default=30.0, help="age at which receipts, rounds and runs are deleted")


def add_round_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the size and the pace of rounds, and the source of seeds."""
    add = parser.add_argument_group("rounds").add_argument
    threshold_help = "blocks before the end at which weights are set, complete or not"
    seed_help = "seeds drawn by this validator, or from the chain, the same for all (default: as the competition says)"
    length_help = "length in blocks (default: the competition's; with another one, no other validator has these rounds)"
    size_help = "evaluations per round (default: the competition's slots)"
    add("--blocks_per_epoch", type=int, help=length_help)
    add("--miner_sample_size", type=int, help=size_help)
    add("--miner_duplicate_sample_size", type=int, default=256, help="datasets downloaded and checked per round")
    add("--block_threshold", type=int, default=50, help=threshold_help)
    add("--max_downloads", type=int, default=8, help="parallel downloads")
    add("--max_epochs", type=int, help="stop after this many rounds (default: never)")
    add("--lucky_num_from", choices=["random", "chain"], help=seed_help)
    add("--lucky_num", type=int, help="one seed for every evaluation instead")
    add("--poll_seconds", type=float, default=6.0, help="pause between reads of the chain")


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --executor and --ray.*."""
    add = parser.add_argument_group("workers").add_argument
    executor_help = "evaluate on this machine, in one process for each --device, or in a Ray cluster"
    address_help = "the cluster's head; auto: the cluster of this machine, which must be a node"
    gpus_help = "0 evaluates on CPUs, less than 1 puts several workers on one GPU"
    cpus_help = "reserved in Ray; an evaluation uses the threads of all cores of its node"
    type_help = "Ray's name of the only GPU type to use, such as H100 (default: any, but all the same)"
    add("--executor", choices=["local", "ray"], default="local", help=executor_help)
    add("--ray.address", dest="ray_address", default="auto", metavar="HOST:PORT", help=address_help)
    add("--ray.workers", dest="ray_workers", type=int, default=1, help="parallel evaluations")
    add("--ray.gpus_per_worker", dest="ray_gpus", type=float, default=1.0, help=gpus_help)
    add("--ray.cpus_per_worker", dest="ray_cpus", type=int, default=1, help=cpus_help)
    add("--ray.accelerator_type", dest="ray_accelerator", metavar="NAME", help=type_help)


def add_metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --metrics.port and --metrics.host."""
    add = parser.add_argument_group("metrics").add_argument
    host_help = "address to listen on; anyone who reaches it can read the metrics. In a container: 0.0.0.0"
    port_help = "serve metrics for Prometheus at this port (default: do not)"
    add("--metrics.port", dest="metrics_port", type=int, metavar="PORT", help=port_help)
    add("--metrics.host", dest="metrics_host", default="127.0.0.1", metavar="ADDRESS", help=host_help)


def check_metrics(args: argparse.Namespace) -> None:
    """Check that --metrics.port is free. Raises: ConfigError."""
    if args.metrics_port is not None:
        check_port("--metrics.port", args.metrics_port, args.metrics_host)
