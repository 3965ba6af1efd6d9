"""Serve the status to Prometheus, from a thread that no tick waits for."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loguru import logger
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from template import __version__
from template.errors import ConfigError, describe_error
from template.records import Metrics
from template.status.health import HealthLimits, find_problems
from template.status.status import Status, read_evaluation_totals, read_status
from template.terminal import describe_verdict

_WARNING_INTERVAL_S = 3600.0
_LEADERS = 10

_Gauge = tuple[str, Callable[[Metrics], float | None]]
"""What a gauge shows, and its value, None where it is unknown."""

_ACTIVITY: Mapping[str, _Gauge] = {
    "report_timestamp_seconds": ("POSIX time of the validator's last report.", lambda last: last.now),
    "chain_block": ("Newest block of the node.", lambda last: last.block),
    "chain_lag_seconds": (
        "Age of the node's newest block when it was read.",
        lambda last: max(last.now - last.block_time, 0.0),
    ),
    "round_number": ("Number of the open round, by its validator.", lambda last: last.round_id),
    "queue_evaluations": ("Evaluations of the open round that are left.", lambda last: last.queue),
    "queue_datasets": ("Datasets of the open round that are not downloaded and checked.", lambda last: last.unscored),
    "running_evaluations": ("Evaluations in progress.", lambda last: len(last.running)),
    "training_tokens_per_second": ("Speed of the last training.", lambda last: last.tokens_per_s),
    "weights_burned_ratio": ("Share of the last accepted weights that is burned.", lambda last: last.burned),
    "weights_age_blocks": (
        "Blocks since the chain last took weights of this hotkey.",
        lambda last: None if last.neuron is None else last.block - last.neuron.last_update_block,
    ),
    "weights_cutoff_blocks": (
        "Age of weights from which the chain counts a validator as inactive.",
        lambda last: None if last.neuron is None else last.neuron.activity_cutoff,
    ),
    "warnings": (
        "Warnings of the status, such as round files that are not published.",
        lambda last: len(last.warnings),
    ),
}


class StatusCollector(Collector):
    """Reads the status at each scrape."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._failures = 0
        self._warned_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        try:
            status = read_status(self._state_dir, time.time(), measures_disk=False)
            metrics = [*_measure(status), _evaluation_metric(*read_evaluation_totals(self._state_dir))]
        except Exception as error:
            # Also a bug costs the metrics alone, and one line of the log.
            metrics, self._failures = [], self._failures + 1
            if time.monotonic() - self._warned_at >= _WARNING_INTERVAL_S:
                self._warned_at = time.monotonic()
                logger.warning("no metrics: {}; the validator continues", describe_error(error))
        yield CounterMetricFamily("subnet_status_failures", "Scrapes without the other metrics.", self._failures)
        yield from metrics


def _measure(status: Status) -> Iterator[Metric]:
    yield from _activity_metrics(status.activity)
    yield from _round_metrics(status)
    yield from _host_metrics(status)


def _activity_metrics(activity: Metrics | None) -> Iterator[Metric]:
    for name, (text, value) in _ACTIVITY.items():
        yield _gauge(name, text, None if activity is None else value(activity))
    memory = {} if activity is None else {run.device: run.memory_bytes for run in activity.running}
    yield _gauges(
        "memory_bytes",
        "Peak memory of the evaluation on a device.",
        ("device",),
        (((device,), size) for device, size in memory.items() if size is not None),
    )


def _round_metrics(status: Status) -> Iterator[Metric]:
    verdicts = Counter(describe_verdict(row, status.ledger) for row in status.standings)
    losses = sorted((row.loss, row.hotkey) for row in status.standings if row.loss is not None and row.reason is None)
    records = [line.loss for line in status.ledger if line.credit > 0.0]
    yield _gauges(
        "datasets",
        "Datasets of the last leaderboard by verdict.",
        ("verdict",),
        (((verdict,), count) for verdict, count in verdicts.items()),
    )
    yield _gauges(
        "leader_loss",
        f"Loss of the best {_LEADERS} datasets of the last leaderboard, as it is paid.",
        ("rank", "hotkey"),
        (((str(rank), hotkey), loss) for rank, (loss, hotkey) in enumerate(losses[:_LEADERS], start=1)),
    )
    yield _gauge("record_loss", "Best loss of the ledger's records.", min(records, default=None))
    yield _gauge("records", "Records of the ledger.", len(records))
    yield _gauge("weights_due_block", "Block by which new weights are due.", status.due_block)


def _evaluation_metric(count: int, seconds: float) -> Metric:
    return SummaryMetricFamily(
        "subnet_evaluation_seconds", "Recorded evaluations and their seconds.", count_value=count, sum_value=seconds
    )


def _host_metrics(status: Status) -> Iterator[Metric]:
    failures = status.attempts.values()
    yield _gauge("datasets_retrying", "Datasets that wait for a retry.", len(status.pending))
    yield _gauge(
        "datasets_suspended", "Datasets that are suspended, because this machine failed.", len(status.suspended)
    )
    yield _gauge(
        "hub_failures",
        "Failures of the Hub in a row, summed over the open round's datasets.",
        sum(attempt.remote_failures for attempt in failures),
    )
    yield _gauge("disk_free_bytes", "Free space on the volume of STATE_DIR.", status.free_bytes)
    yield _gauges(
        "problem",
        "1 for each PROBLEM of the status, by its code.",
        ("code",),
        (((problem.code,), 1) for problem in find_problems(status, HealthLimits())),
    )
    yield _gauges("info", "Release and model.", ("version", "model"), [((__version__, status.model or ""), 1)])


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return _gauges(name, text, (), [] if value is None else [((), value)])


def _gauges(name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"subnet_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


@contextmanager
def serving(state_dir: Path, host: str, port: int | None) -> Iterator[None]:
    """Serve the metrics during the block, unless `port` is None. Raises: ConfigError for a port that is taken."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(StatusCollector(state_dir))
    ProcessCollector(registry=registry)
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"--metrics.port {port}: {error.strerror or error}; name another one") from error
    logger.info("metrics are served at http://{}:{}/metrics", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
