"""What the miner's tests share: its configuration on a local network, and sleeps during which blocks pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from net_fixtures import (
    MINER,
    SMALL,
    Ended,
    Net,
    SteppingChain,
    call_main,
    load_main,
    write_dataset,
    write_training_args,
)

from template.chain import Chain
from template.data import Row
from template.localnet.hub_store import HubStore, Refusal
from template.miner import publish_dataset
from template.miner_draft import MinerConfig, Published
from template.records import ChainCommitment

# A signed call may be included for so many blocks.
ERA_BLOCKS = 32


def never_asked(row: Row) -> bool:
    raise AssertionError(f"the model was asked about line {row.line}")


def configure(net: Net, lines: list[str] = SMALL, **settings: object) -> MinerConfig:
    work_dir = net.parts.folder / "work"
    work_dir.mkdir(exist_ok=True)
    config = MinerConfig(
        hf_repo_id="alice/data",
        dataset_path=write_dataset(net.parts.folder / "mine", lines),
        competition=net.competition,
        work_dir=work_dir,
        has_target=never_asked,
        poll_s=0.001,
        hub_token="hf_local_alice",
    )
    return replace(config, **settings)  # type: ignore[arg-type]


def stepping(net: Net, *, limit: int = 200) -> Callable[[float], None]:
    """A sleep during which one block passes; no test needs more than `limit`."""
    left = iter(range(limit))

    def sleep(_: float) -> None:
        assert next(left, None) is not None, "the miner waits for ever"
        net.admin.advance()

    return sleep


def agree(_: str) -> bool:
    return True


def run_miner(config: MinerConfig, chain: Chain, sleep: Callable[[float], None]) -> Published:
    """Publishes with a yes to every question."""
    published = publish_dataset(config, chain, confirm=agree, sleep=sleep)
    assert published is not None
    return published


def publish(net: Net, lines: list[str] = SMALL, **settings: object) -> Published:
    return run_miner(configure(net, lines, **settings), net.chain("alice"), stepping(net))


def head(net: Net) -> str | None:
    """The newest commit of alice's repo, None when there is none."""
    store = HubStore(net.hub.store.root)
    try:
        return store.repo("datasets", "alice/data").head
    except Refusal:
        return None


def commits(net: Net) -> int:
    return net.count_calls("alice", "set_commitment")


class LaggingChain(SteppingChain):
    """Shows a commitment some blocks after it was made, as a node does that reads finalized blocks only."""

    def commitment(self, hotkey: str) -> ChainCommitment | None:
        held = super().commitment(hotkey)
        return held if held is not None and self.block() >= held.block + 3 else None


class Killed(BaseException):
    """Stands for a kill: nothing in the product catches it."""


def arguments(
    net: Net, *more: object, wallet: str = "alice", repo: str = "alice/data", path: object = None
) -> list[object]:
    """The miner's command line."""
    folder = net.parts.folder
    return [
        *net.chain_arguments(wallet),
        *("--hf_repo_id", repo, "--dataset_path", path or write_dataset(folder / "mine", SMALL)),
        *("--work_dir", folder / "work", "--poll_seconds", "0.01"),
        *("--training_args", write_training_args(folder / "args.yaml")),
        *more,
    ]


def run(
    net: Net, *, wallet: str = "alice", repo: str = "alice/data", path: object = None, more: Sequence[str] = ("--yes",)
) -> Ended:
    """The miner as the command line runs it, which asks nothing."""
    return call_main(load_main(MINER), *arguments(net, *more, wallet=wallet, repo=repo, path=path))
