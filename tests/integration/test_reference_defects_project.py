"""Defects of the public reference, third part: what surrounds the validator, and what nothing uses.

Each test is named after one defect, whose story its docstring tells, and says what holds here instead. The other parts
are `test_reference_defects` and `test_reference_defects_operation`.
"""

import argparse
import ast
import dataclasses
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from template import constants
from template.competition import Competition
from template.config import Hyperparameters
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.localnet.chain.chain import ChainFault
from template.localnet.hub.faults import FaultKind, HubFault, set_faults
from template.miner.sealed import at_round_start, seal_dataset
from template.rules.schedule import Policy
from template.store.store import Store
from template.validator.config import ValidatorConfig
from tests.fixtures.miner import LaggingChain, commits, configure, head, publish, run_miner, stepping
from tests.fixtures.network import (
    LARGE,
    POOL,
    ROOT,
    SMALL,
    VALIDATOR,
    Net,
    Process,
    make_content,
    make_line,
    run_bounded,
    use_hub,
    write_training_args,
)
from tests.fixtures.reference_defects import about, hub_requests
from tests.fixtures.validator import open_bench

PRODUCT = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("template", "neurons", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PROGRAMS = [
    path
    for path, tree in PRODUCT.items()
    if path.parent.name in ("neurons", "scripts")
    if any(isinstance(node, ast.FunctionDef) and node.name == "build_parser" for node in tree.body)
]


def reads(tree: ast.AST, *, of: str | None = None) -> set[str]:
    """The attributes that a module reads, of the variable `of` or of anything but self."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))
    owners = ((getattr(node.value, "id", None), node.attr) for node in found)
    return {name for owner, name in owners if (owner == of if of else owner != "self")}


def names(tree: ast.AST) -> set[str]:
    """The names that a module imports or uses."""
    aliases = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return aliases | reads(tree) | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_25_two_validators_share_a_machine_and_a_working_directory(net: Net, tiny_model: Path) -> None:
    """Database, outputs and settings were looked for in the working directory: one validator for each."""
    key = net.submit("alice", SMALL)
    before = sorted(Path("/").iterdir())
    folders = [net.parts.folder / name for name in ("one", "two")]
    arguments = [
        *(*net.chain_arguments("validator"), "--dont_set_weights", "--max_epochs", "1", "--poll_seconds", "0.05"),
        *("--model_path", tiny_model, "--training_args", write_training_args(net.parts.folder / "args.yaml")),
        *("--blocks_per_epoch", "20", "--block_threshold", "5", "--lucky_num", "5", "--wandb.off"),
    ]
    starts = [(VALIDATOR, *arguments, "--state_dir", folder) for folder in folders]
    with (
        Process(*starts[0], env=net.environment("validator")) as one,
        Process(*starts[1], env=net.environment("validator")) as two,
    ):
        assert [one.finish(), two.finish()] == [0, 0], [*one.logs[-5:], *two.logs[-5:]]
    losses = []
    for folder in folders:
        with Store(folder / "validator.sqlite3", is_read_only=True) as store:
            losses += [line.loss for line in store.leaderboard(1) if line.key == key]
    assert len(losses) == 2 and losses[0] is not None and losses[0] == losses[1]
    assert sorted(Path("/").iterdir()) == before


@pytest.fixture
def as_alice(net: Net) -> Iterator[None]:
    """This process meets the hub as alice."""
    with use_hub(net, "alice"):
        yield


@pytest.mark.usefixtures("as_alice")
def test_26a_a_file_that_would_be_refused_is_not_even_uploaded(net: Net) -> None:
    """The miner published whatever it was given."""
    with pytest.raises(SubmissionError) as caught:
        publish(net, [*SMALL, make_line(10**6)])
    assert caught.value.reason is Reason.NOT_IN_POOL
    assert head(net) is None and commits(net) == 0


@pytest.mark.usefixtures("as_alice")
@pytest.mark.parametrize(("token", "status"), [("hf_local_bob", None), ("hf_local_alice", 500)])
def test_26b_a_repository_that_cannot_be_made_is_an_error(net: Net, token: str, status: int | None) -> None:
    """Every failure to make it was taken for one that is there already."""
    if status is not None:
        set_faults(net.hub.store.root, HubFault(kind=FaultKind.STATUS, status=status, pattern="POST /api/repos/create"))
    with hub_requests() as asked, pytest.raises(RemoteError if status else HostError):
        publish(net, hub_token=token)
    assert about(asked, "repos/create") and not about(asked, "/commit/") and commits(net) == 0


@pytest.mark.usefixtures("as_alice")
def test_26c_nothing_is_committed_before_everybody_can_read_it(net: Net) -> None:
    """What was committed was never looked at again from outside."""
    set_faults(net.hub.store.root, HubFault(kind=FaultKind.WRONG, pattern="GET /datasets/alice/data/resolve/"))
    with pytest.raises(RemoteError):
        publish(net)
    assert head(net) is not None and commits(net) == 0


@pytest.mark.usefixtures("as_alice")
def test_26d_a_commitment_whose_answer_is_lost_is_not_made_twice(net: Net) -> None:
    """A connection that dropped after the commitment made a second one, at a later block."""
    net.admin.set_fault("write", ChainFault.LOSE_ANSWER)
    with LaggingChain(net, "alice", blocks=0) as chain:
        first = run_miner(configure(net), chain, stepping(net))
    net.admin.advance(50)
    assert publish(net) == first and commits(net) == 1


@pytest.mark.usefixtures("as_alice")
def test_26e_what_does_not_fit_the_chain_is_refused_before_anything_is_made(net: Net) -> None:
    """The limits of a commitment stood in a file and were never looked at."""
    with hub_requests() as asked, pytest.raises(ConfigError, match="--hf_repo_id"):
        publish(net, hf_repo_id=f"alice/{'x' * 90}")
    assert asked == [] and commits(net) == 0


@pytest.mark.usefixtures("as_alice")
def test_26f_a_dataset_can_be_committed_before_anybody_can_read_it(net: Net) -> None:
    """Between upload and commitment anybody could commit the same file first."""
    seen: list[str | None] = []

    def sleep(_: float) -> None:
        held = net.chain("alice").commitment(net.hotkey("alice"))
        if held is not None and held.reveal_round is not None:
            seen.append(head(net))
            net.admin.reveal(net.hotkey("alice"), f"alice/data:sample:{digest}")
        net.admin.advance()

    config = configure(net)
    digest = hashlib.sha256(make_content(SMALL)).hexdigest()
    sealed = seal_dataset(config, net.chain("alice"), schedule=at_round_start(360), confirm=lambda _: True, sleep=sleep)
    assert seen == [None], "sealed on chain while the hub had nothing"
    assert sealed is not None and head(net) is not None and commits(net) == 1


@pytest.mark.usefixtures("as_alice")
def test_26g_a_refusal_that_lasts_ends_the_miner(net: Net) -> None:
    """It tried again for ever, whatever the answer was."""
    net.admin.deregister(net.hotkey("alice"))
    with pytest.raises(ConfigError, match="not registered"):
        publish(net)


def test_27a_the_competitions_whole_curve_decides_the_weights(net: Net) -> None:
    """The score's curve was computed and not used: the winner took all."""
    for name, rows in (("alice", LARGE), ("bob", SMALL), ("carol", POOL[40:80])):
        net.submit(name, rows)
    plain = net.competition
    tables = []
    for changed in ({}, {"bench": 6.15}, {"minb": 5.7}, {"maxb": 6.9}, {"pow": 2.0}, {"bheight": 0.4}):
        net.competition = dataclasses.replace(plain, **changed)  # type: ignore[arg-type]
        with open_bench(net, f"state-{len(tables)}") as bench:
            run_bounded(bench.validator)
            tables.append(tuple(sorted(line.weight for line in bench.lines().values())))
    assert all(0.0 < weight < 1.0 for table in tables for weight in table)
    assert len(set(tables)) == len(tables)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_27b_every_flag_is_used(path: Path) -> None:
    """Settings that nothing read stood beside those that mattered."""
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    parser: argparse.ArgumentParser = module.build_parser()
    # Arguments are handed on as `args` to what several programs share.
    shared = (tree for other, tree in PRODUCT.items() if other.parent.name == "template" or other not in PROGRAMS)
    used = set().union(reads(PRODUCT[path], of="args"), *(reads(tree, of="args") for tree in shared))
    spelled_out = {"help", "all"}  # --all is what happens without it
    assert {action.dest for action in parser._actions} - used <= spelled_out


def test_27c_every_setting_and_constant_is_used() -> None:
    """A decay rate, an epoch's length, the limits of a commitment: written down, and looked at by nothing."""
    homes = {Competition: "competition", Hyperparameters: "settings", Policy: None, ValidatorConfig: "validator_config"}
    for kind, home in homes.items():
        used = set().union(*(reads(tree) for path, tree in PRODUCT.items() if path.stem != home))
        assert {field.name for field in dataclasses.fields(kind)} - used == set(), kind  # type: ignore[arg-type]
    used = set().union(*(names(tree) for path, tree in PRODUCT.items() if path.stem != "constants"))
    assert {name for name in vars(constants) if not name.startswith("_")} - used == set()


def test_27d_every_function_and_class_is_used() -> None:
    """Code that nothing called, and that its readers took for what the validator does."""
    called_from_outside = {"main", "build_parser", "train_lora"}
    used = set().union(*(names(tree) for tree in PRODUCT.values()))
    # Not those of the local network, which is there for the tests.
    unused = [
        f"{path.stem}.{node.name}"
        for path, tree in PRODUCT.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and "localnet" not in path.parts
        if node.name not in used | called_from_outside
    ]
    assert unused == []
