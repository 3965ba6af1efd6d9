"""Find flags, settings, functions and classes that nothing uses."""

import argparse
import ast
import dataclasses
import functools
import importlib
from pathlib import Path

import pytest

from template import constants
from template.competition import Competition
from template.config import Hyperparameters
from template.rules.schedule import Policy
from template.validator.config import ValidatorConfig
from tests.fixtures.source import PRODUCT, parse

TREES = parse(*PRODUCT)
PROGRAMS = [
    path
    for path, tree in TREES.items()
    if path.parent.name in ("neurons", "scripts")
    if any(isinstance(node, ast.FunctionDef) and node.name == "build_parser" for node in tree.body)
]


@functools.cache
def reads(tree: ast.AST, *, of: str | None = None) -> set[str]:
    """Return the attributes read of the variable `of`, or of anything but self."""
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))
    owners = ((getattr(node.value, "id", None), node.attr) for node in attributes)
    return {name for owner, name in owners if (owner == of if of else owner != "self")}


@functools.cache
def names(tree: ast.AST) -> set[str]:
    """Return the names that a module imports or uses."""
    aliases = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return aliases | reads(tree) | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_flag_is_used(path: Path) -> None:
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    parser: argparse.ArgumentParser = module.build_parser()
    # Functions that several programs share take the arguments as `args`.
    shared = (tree for other, tree in TREES.items() if other.parent.name == "template" or other not in PROGRAMS)
    # The doctor has its neuron's flags.
    neurons = (TREES[other] for other in PROGRAMS if path.stem == "doctor" and other.parent.name == "neurons")
    used = set().union(*(reads(tree, of="args") for tree in (TREES[path], *neurons, *shared)))
    spelled_out = {"help", "version", "all"}  # --all is the default
    assert {action.dest for action in parser._actions} - used <= spelled_out


def test_every_setting_and_constant_is_used() -> None:
    homes = {Competition: "competition", Hyperparameters: "settings", Policy: None, ValidatorConfig: "validator_config"}
    for kind, home in homes.items():
        used = set().union(*(reads(tree) for path, tree in TREES.items() if path.stem != home))
        assert {field.name for field in dataclasses.fields(kind)} - used == set(), kind  # type: ignore[arg-type]
    used = set().union(*(names(tree) for path, tree in TREES.items() if path.stem != "constants"))
    assert {name for name in vars(constants) if not name.startswith("_")} - used == set()


def test_every_function_and_class_is_used() -> None:
    mkdocs_hooks = {"on_files", "on_page_markdown"}
    called_from_outside = {"main", "build_parser", "train_lora", *mkdocs_hooks}
    used = set().union(*(names(tree) for tree in TREES.values()))
    # The local network is there for the tests.
    unused = [
        f"{path.stem}.{node.name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and "localnet" not in path.parts
        if node.name not in used | called_from_outside
    ]
    assert unused == []
