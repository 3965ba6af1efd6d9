"""The metrics of a validator that has done a round, scraped over HTTP."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from template.records import RetryState
from template.status.exporter import serving
from tests.fixtures.logs import log_lines
from tests.fixtures.network import ROOT, SMALL, Net, call_main, load_main, use_hub
from tests.fixtures.validator import open_bench

DASHBOARD = ROOT / "contrib" / "grafana-dashboard.json"
RULES = ROOT / "contrib" / "prometheus-rules.yml"
_METRIC = re.compile(r"\b(?:subnet|process)_[a-z_]+")


class Scrape(dict[tuple[str, tuple[str, ...]], float]):
    """Values by name and labels. names: also of metrics without a value, as Prometheus stores them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        for family in text_string_to_metric_families(text):
            suffixes = {"counter": ("_total",), "summary": ("_count", "_sum")}.get(family.type, ("",))
            self.names |= {f"{family.name}{suffix}" for suffix in suffixes}
            self.update({(sample.name, tuple(sample.labels.values())): sample.value for sample in family.samples})


@contextmanager
def served(state_dir: Path) -> Iterator[str]:
    """Serve a state's metrics; yield their address as the log names it."""
    with log_lines("INFO") as lines, serving(state_dir, "127.0.0.1", 0):
        (address,) = [word for line in lines for word in line.split() if word.startswith("http://127.0.0.1:")]
        yield address


def scrape(address: str) -> Scrape:
    with urllib.request.urlopen(address, timeout=10) as response:
        return Scrape(response.read().decode())


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """The metrics after a round, with one dataset that the Hub does not return."""
    with Net(tmp_path_factory.mktemp("metrics") / "network", ["alice", "bob"]) as net, use_hub(net):
        net.submit("alice", SMALL)
        late = net.submit("bob", b"x", file="other.txt")
        with open_bench(net) as bench, served(net.parts.folder / "state") as address:
            bench.run_rounds()
            failed = RetryState(remote_failures=3, next_at=2e9)
            bench.store.record_retry_state(bench.eval_config, late, failed)
            yield scrape(address)


def test_scrape_has_what_the_round_left(scraped: Scrape) -> None:
    (loss,) = [value for (name, labels), value in scraped.items() if name == "subnet_leader_loss" and "1" in labels]
    assert 5.0 < loss < 8.0
    assert scraped["subnet_datasets", ("missing_file",)] == 1
    assert scraped["subnet_evaluation_seconds_count", ()] == 1
    assert scraped["subnet_hub_failures", ()] == 3 and scraped["subnet_datasets_retrying", ()] == 1
    assert scraped["subnet_weights_age_blocks", ()] < scraped["subnet_weights_cutoff_blocks", ()]
    assert scraped["subnet_disk_free_bytes", ()] > 0 and scraped["process_resident_memory_bytes", ()] > 0
    assert scraped["subnet_status_failures_total", ()] == 0


def test_dashboard_and_rules_use_only_metrics_that_exist(scraped: Scrape) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    used = {name for text in [*queries, *(rule["expr"] for rule in rules)] for name in _METRIC.findall(text)}
    assert len(used) > 20 and used <= scraped.names


def test_guide_lists_every_metric_and_no_other(scraped: Scrape) -> None:
    guide = (ROOT / "docs" / "operator.md").read_text()
    table = guide[guide.index("| metric | meaning |") :].split("\n\n")[0]
    listed = {name for row in table.splitlines() for name in re.findall(r"`(subnet_\w+)", row.split("|")[1])}
    assert "`subnet_evaluation_seconds_count`, `_sum`" in table
    assert listed | {"subnet_evaluation_seconds_sum"} == {name for name in scraped.names if name.startswith("subnet_")}


def test_promtool_accepts_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine (Debian's package prometheus has it)")
    done = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_state_that_cannot_be_read_is_one_warning(tmp_path: Path) -> None:
    with served(tmp_path) as address, log_lines("WARNING") as lines:
        assert [scrape(address)["subnet_status_failures_total", ()] for _ in range(3)] == [1, 2, 3]
    (line,) = lines
    assert f"no metrics: no validator state at {tmp_path}" in line


def test_port_in_use_ends_the_start_and_names_the_flag(net: Net, tmp_path: Path) -> None:
    with served(tmp_path) as address:
        port = address.split(":")[2].partition("/")[0]
        flags = ("--state_dir", tmp_path / "state", "--wandb.off", "--metrics.port", port)
        ended = call_main(load_main(ROOT / "neurons" / "validator.py"), *net.chain_arguments("validator"), *flags)
    assert ended.status == 3
    (line,) = [line for line in ended.logs if "--metrics.port" in line]
    assert f"--metrics.port {port}: Address already in use on 127.0.0.1; `ss -ltnp sport = :{port}` shows its" in line
