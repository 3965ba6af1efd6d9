"""Settings of Ray workers, and the files sent to them, without a cluster."""

import importlib.util
from pathlib import Path

import pytest

from template.errors import ConfigError, HostError
from template.workers.messages import RayConfig
from template.workers.ray_actor import FileContent
from template.workers.ray_executor import check_config
from tests.fixtures.network import VALIDATOR, Net, call_main, load_main

WRONG: dict[str, tuple[dict[str, object], str]] = {
    "a client's address": ({"address": "ray://head:10001"}, "--ray.address must be auto or HOST:PORT"),
    "no port": ({"address": "head"}, "--ray.address"),
    "no workers": ({"workers": 0}, "--ray.workers must be positive"),
    "two GPUs": ({"gpus_per_worker": 2.0}, "--ray.gpus_per_worker must be in [0, 1]"),
    "GPUs not a number": ({"gpus_per_worker": float("nan")}, "--ray.gpus_per_worker"),
    "no CPU": ({"cpus_per_worker": 0}, "--ray.cpus_per_worker must be positive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_check_config_names_the_wrong_flag(case: str) -> None:
    changed, message = WRONG[case]
    with pytest.raises(ConfigError) as raised:
        check_config(RayConfig(**changed))  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_check_config_without_ray_names_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"scripts/setup\.sh"):
        check_config(RayConfig())


def test_device_flag_with_ray_is_refused(net: Net, tiny_model: Path) -> None:
    arguments = ["--netuid", 96, "--subtensor.network", net.network, "--offline", "--wandb.off"]
    state = ["--state_dir", net.parts.folder / "process", "--executor", "ray", "--device", "cuda:0"]
    ended = call_main(load_main(VALIDATOR), *arguments, *state)
    assert ended.status == 3 and "--device needs --executor local" in ended.logs[0]


def test_file_content_damaged_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="damaged on its way"):
        FileContent(data=b"other", sha256="0" * 64).write(tmp_path / "data")
    assert not (tmp_path / "data").exists()
