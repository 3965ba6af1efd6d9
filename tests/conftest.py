"""Set-up of every test: none leaves this machine or touches the user's home.

The environment is set here, before any client is imported and reads it.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.canaries import plant
from tests.fixtures.canaries import pytest_runtest_logreport as pytest_runtest_logreport
from tests.fixtures.canaries import pytest_sessionfinish as pytest_sessionfinish
from tests.fixtures.canaries import pytest_terminal_summary as pytest_terminal_summary
from tests.fixtures.canaries import pytest_testnodedown as pytest_testnodedown

if TYPE_CHECKING:
    from template.chain.client import Chain
    from template.localnet.chain.chain import LocalChain
    from template.localnet.node.server import NodeServer
    from template.records import EvalConfig
    from template.store.store import Store
    from tests.fixtures.faulty_hub import FaultyHub
    from tests.fixtures.network import Net
    from tests.fixtures.node import Wire
    from tests.fixtures.training import Bench

# A shell makes its background processes ignore Ctrl-C, and tests interrupt processes with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _make_folder(name: str, parent: Path | None = None) -> Path:
    """Make a folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix=name, dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _use_memory(memory: Path = Path("/dev/shm")) -> None:
    """Keep temporary files in memory if it has room: thousands of syncs are slow.

    They are gone after the run; set TMPDIR to keep pytest's.
    """
    if "TMPDIR" in os.environ or not memory.is_dir():
        return
    room = os.statvfs(memory)
    if not room.f_flag & os.ST_NOEXEC and room.f_bavail * room.f_frsize > 8 << 30:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_make_folder("tests-", memory))


_use_memory()
_HOME = _make_folder("tests-home-")

os.environ.update(
    {
        "HF_HOME": f"{_HOME}/huggingface",
        # A closed port: a call without a local hub fails at once.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "BTCLI_TOKEN_SYMBOLS_CACHE": f"{_HOME}/token_symbols.json",
        "BITTENSOR_RUNTIME_CACHE_DIR": f"{_HOME}/runtime_cache",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        # Waiting threads sleep instead of spinning: several times faster on a busy machine.
        "OMP_WAIT_POLICY": "passive",
    }
)
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
plant(Path(_HOME))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import the libraries without garbage collection, and exempt their objects: 5 s less in each process."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that the last tests of several processes are short ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tiny random Qwen2; read-only."""
    from scripts.bench.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bench":
    """The tiny model with a small dataset and evaluation set; read-only."""
    from tests.fixtures.training import Bench, make_rows, write_rows

    folder = tmp_path_factory.mktemp("bench")
    return Bench(
        model_path=tiny_model,
        data_dir=write_rows(folder / "data", make_rows(13, seed=1)),
        eval_data_dir=write_rows(folder / "eval_data", make_rows(9, seed=2)),
    )


@pytest.fixture
def local(tmp_path: Path) -> "Iterator[LocalChain]":
    """A stepped local chain with //validator and //miner registered, in that order."""
    from tests.fixtures.chain import make_key, make_local_chain

    with make_local_chain(tmp_path) as chain:
        chain.register(make_key("validator").ss58_address, is_validator=True)
        chain.register(make_key("miner").ss58_address)
        yield chain


@pytest.fixture
def node(local: "LocalChain") -> "Iterator[NodeServer]":
    """A node of `local`."""
    from template.localnet.node.server import NodeServer

    with NodeServer(local.path) as server:
        yield server


@pytest.fixture
def wire(node: "NodeServer") -> "Iterator[Wire]":
    """A JSON-RPC connection to `node`."""
    from tests.fixtures.node import open_wire

    with open_wire(node) as connection:
        yield connection


@pytest.fixture
def miner(local: "LocalChain") -> "Iterator[Chain]":
    """The product's connection to `local` as //miner."""
    from tests.fixtures.chain import connect, make_key

    with connect(local, make_key("miner")) as chain:
        yield chain


@pytest.fixture
def validator(local: "LocalChain") -> "Iterator[Chain]":
    """The product's connection to `local` as //validator."""
    from tests.fixtures.chain import connect, make_key

    with connect(local, make_key("validator")) as chain:
        yield chain


@pytest.fixture
def server(tmp_path: Path) -> "Iterator[FaultyHub]":
    """An empty hub, without faults."""
    from tests.fixtures.faulty_hub import FaultyHub

    with FaultyHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of the file of `store`."""
    return tmp_path / "state" / "validator.sqlite3"


@pytest.fixture
def store(path: Path) -> "Iterator[Store]":
    """An open, empty state file."""
    from template.store.store import Store

    with Store(path) as opened:
        yield opened


@pytest.fixture
def eval_config(store: "Store") -> "EvalConfig":
    """The default competition, recorded in `store`."""
    from template.competition import Competition

    return store.get_or_create_config(Competition.from_defaults(), "h" * 64, "org/model@abc", now=1.0)


@pytest.fixture(scope="session")
def new_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a closed network, of which tests take copies."""
    from tests.fixtures.network import Net

    with Net(tmp_path_factory.mktemp("new") / "network", ["alice", "bob", "carol"]) as net:
        return net.parts.folder.parent


@pytest.fixture
def net(new_network: Path, tmp_path: Path) -> "Iterator[Net]":
    """A local network of three miners, with its hub set for this process."""
    from tests.fixtures.network import Net, use_hub

    shutil.copytree(new_network, tmp_path / "network")
    with Net.open(tmp_path / "network") as net, use_hub(net):
        yield net
