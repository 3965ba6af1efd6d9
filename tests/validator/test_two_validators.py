"""Two validators on one machine, in processes of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from template.competition import Incentives
from template.files import lock_holder_pid
from tests.fixtures.network import SMALL, VALIDATOR, Net, Process, use_hub, write_training_args
from tests.fixtures.workers import until

pytestmark = pytest.mark.slow


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with Net(tmp_path / "network", ["alice"]) as net, use_hub(net, "validator"):
        net.submit("alice", SMALL)
        net.align(Incentives().blocks_per_epoch)
        yield net


def start(net: Net, name: str, model: Path, *more: object) -> Process:
    """Start the validator of a wallet for one round, with all folders in the same home."""
    words = [*net.chain_arguments(name), "--training_args", write_training_args(net.parts.folder / "args.yaml")]
    words += ["--model_path", model, "--max_epochs", 1, "--poll_seconds", 0.05, "--dont_set_weights", "--wandb.off"]
    home = {"HOME": str(net.parts.folder)}
    return Process(VALIDATOR, *words, *more, env={**net.environment("validator"), **home})


def find_state(net: Net, name: str) -> Path:
    """Return the default state file of a wallet's validator, which it has locked."""

    def find() -> list[Path]:
        files = (net.parts.folder / ".dataset-subnet").glob(f"*-{name}-default/validator.sqlite3")
        return [file for file in files if lock_holder_pid(file)]

    until(find)
    return find()[0]


def test_two_validators_need_two_state_folders(net: Net, tiny_model: Path) -> None:
    with start(net, "validator", tiny_model) as first:
        state = find_state(net, "validator")
        with start(net, "owner", tiny_model, "--state_dir", state.parent) as second:
            assert second.finish() == 3
        (line,) = second.lines("ERROR")
        assert line.partition(" ERROR   ")[2] == (
            f"another validator (process {first.pid}) is using {state}; stop it, or give this one its own --state_dir"
        )
        with start(net, "owner", tiny_model) as third:
            other = find_state(net, "owner")
            assert (lock_holder_pid(state), lock_holder_pid(other)) == (first.pid, third.pid)
            assert not first.lines("ERROR") + third.lines("ERROR")
