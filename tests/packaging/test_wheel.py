"""Install the built package outside a clone, and play one round with its command."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from template import __version__
from template.receipts.files import read_receipt
from template.telemetry.redaction import without_secrets
from tests.fixtures.network import PATIENCE_S, ROOT, write_training_args
from tests.fixtures.source import PRODUCT

FILES = ("LICENSE", "MANIFEST.in", "pyproject.toml", "setup.py", "training_args.yaml")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a wheel made from a source distribution; return the environment's bin/.

    The environment borrows the dependencies of this one, whose editable installation it does not see.
    """
    folder = tmp_path_factory.mktemp("installed")
    source, environment = folder / "source", folder / "venv"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in PRODUCT:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import setuptools.build_meta as build; build.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (distribution,) = (source / "dist").iterdir()
    venv.create(environment, symlinks=True)
    purelib = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (purelib / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", distribution], check=True, cwd=folder)
    return environment / "bin"


def environment(home: Path, **variables: str) -> dict[str, str]:
    kept = {key: value for key, value in without_secrets(os.environ).items() if not key.startswith(("PYTHON", "HF_"))}
    return {**kept, "HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", **variables}


def run(command: list[object], home: Path, **variables: str) -> str:
    """Run a command in an empty folder; return its stdout."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=home,
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 3,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def localnet(installed: Path, home: Path) -> Iterator[dict[str, str]]:
    """Run `subnet localnet`; yield its addresses."""
    command = [installed / "subnet", "localnet", "--dir", home / "net", "--sample", "--miners", "alice"]
    command += ["--port", "0", "--block_seconds", "0.3"]
    with subprocess.Popen(command, cwd=home, env=environment(home), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("local network ready" in line for line in process.stderr), process.wait()
            yield json.loads((home / "net" / "localnet.json").read_text())
        finally:
            process.terminate()
            process.communicate()


def test_installed_command_prints_its_version(installed: Path, tmp_path: Path) -> None:
    assert run([installed / "subnet", "--version"], tmp_path) == f"dataset-subnet {__version__}\n"
    code = "import template; print(template.__file__)"
    assert run([installed / "python", "-c", code], tmp_path).startswith(str(installed.parent))


def test_installed_package_holds_its_data(installed: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, template; from template.config import load_training_args as load;"
        "root = pathlib.Path(template.__file__).parent;"
        "print(load(None).model_id, load(root / 'localnet/sample/training_args.yaml').model_id);"
        "print((root / 'py.typed').is_file());"
        "from template.site.render import ASSETS, _environment, read_asset;"
        "print(all(map(read_asset, ASSETS)), sorted(_environment().list_templates()))"
    )
    expected = "Qwen/Qwen2.5-1.5B-Instruct HuggingFaceTB/SmolLM2-135M-Instruct\nTrue\n"
    templates = sorted(path.name for path in (ROOT / "template" / "site" / "templates").iterdir())
    expected += f"True {templates}\n"
    assert run([installed / "python", "-c", code], tmp_path) == expected


def test_installed_package_plays_a_whole_round(installed: Path, tiny_model: Path, tmp_path: Path) -> None:
    subnet, state = installed / "subnet", tmp_path / "state"
    run([installed / "python", "-m", "template.localnet.sample", "--out", "datasets"], tmp_path)
    score = ["--training_args", write_training_args(tmp_path / "args.yaml"), "--model_path", tiny_model]
    with localnet(installed, tmp_path) as net:
        names = {"BT_NETWORK": net["network"], "BT_WALLET_PATH": net["wallets"], "HF_ENDPOINT": net["hub_endpoint"]}
        shared = ["--netuid", net["netuid"], "--competition", net["competition"], "--poll_seconds", "0.2", *score]
        dataset = ["--hf_repo_id", "alice/data", "--dataset_path", "datasets/narrow", "--yes"]
        token = f"{net['token_prefix']}alice"
        run([subnet, "miner", *shared, *dataset], tmp_path, **names, BT_WALLET="alice", HF_TOKEN=token)
        once = ["--state_dir", state, "--max_epochs", "1", "--block_threshold", "5", "--wandb.off"]
        run([subnet, "validator", *shared, *once], tmp_path, **names, BT_WALLET="validator")
    status = json.loads(run([subnet, "status", "--state_dir", state, "--json"], tmp_path))
    (row,) = status["standings"]
    assert row["key"]["entry"].startswith("alice/data:")
    # Not of the leaderboard: on a busy machine a round sets its weights before its evaluation ends.
    (receipt,) = (state / "receipts").glob("*.json")
    assert read_receipt(receipt).result.loss > 0 and list((state / "rounds").glob("round-*.jsonl"))
