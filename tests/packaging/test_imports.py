"""The layers of the package, read from its imports: upward, sideways and circular edges fail, lazy ones included.

A new module takes its place in `LAYERS` below, or the first test fails.
"""

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Module pattern -> (layer, group). A module imports lower layers and its own group; where the group is None, its
# whole layer counts as one group. No module imports another in a circle.
LAYERS: dict[str, tuple[int, str | None]] = {
    # Frozen records, constants, errors: standard library only.
    "template.errors": (0, None),
    "template.constants": (0, None),
    "template.records": (0, None),
    "template.state": (0, None),
    # Pure rules: no torch, no clock, no I/O. `settings` alone reads files, and YAML.
    "template.competition": (1, None),
    "template.data.chat_templates": (1, None),
    "template.data.rows": (1, None),
    "template.chain.commitments": (1, None),
    "template.rules.duplicates": (1, None),
    "template.data.near_duplicates": (1, None),
    "template.miner.check": (1, None),
    "template.miner.check_report": (1, None),
    "template.rules.scoring": (1, None),
    "template.rules.leaderboard": (1, None),
    "template.rules.schedule": (1, None),
    "template.telemetry.redaction": (1, None),
    "template.telemetry.metrics": (1, None),
    "template.validator.status_report": (1, None),
    "template.validator.status_table": (1, None),
    "template.validator.status": (1, None),
    "template.terminal": (1, None),
    "template.receipts.receipt": (1, None),
    "template.serialization": (1, None),
    "template.miner.compare": (1, None),
    "template.receipts.verify": (1, None),
    "template.receipts.round_file": (1, None),
    "template.rules.seeds": (1, None),
    "template.workers.timeouts": (1, None),
    "template.workers.messages": (1, None),
    "template.config": (1, None),
    # The score, beside one seam for each outside system.
    "template.train": (2, "train"),
    "template.training.model": (2, "train"),
    "template.training.loop": (2, "train"),
    "template.training.lora": (2, "train"),
    "template.training.attention": (2, "train"),
    "template.training.backprop": (2, "train"),
    "template.training.cross_entropy": (2, "train"),
    "template.training.dropout": (2, "train"),
    "template.training.cuda_graphs": (2, "train"),
    "template.training.layers": (2, "train"),
    "template.training.model_files": (2, "train"),
    "template.training.norm": (2, "train"),
    "template.training.tokenizer": (2, "train"),
    "template.training.packing": (2, "train"),
    "template.training.determinism": (2, "train"),
    "template.chain.client": (2, "chain"),
    "template.chain.event_loop": (2, "chain"),
    "template.chain.reads": (2, "chain"),
    "template.chain.endpoints": (2, "chain"),
    "template.chain.timelock": (2, "chain"),
    "template.chain.wallets": (2, "chain"),
    "template.hub.datasets": (2, "hub"),
    "template.hub.client": (2, "hub"),
    "template.hub.transport": (2, "hub"),
    "template.hub.network": (2, "hub"),
    "template.hub.storage": (2, "hub"),
    "template.store.store": (2, "store"),
    "template.store.database": (2, "store"),
    "template.store.submissions": (2, "store"),
    "template.store.rounds": (2, "store"),
    "template.store.status_store": (2, "store"),
    "template.store.migrations": (2, "store"),
    "template.lockfile": (2, "store"),
    "template.telemetry.logging": (2, "tracking"),
    "template.telemetry.log_stream": (2, "tracking"),
    "template.updates": (2, "updates"),
    "template.telemetry.wandb_tracker": (2, "tracking"),
    "template.telemetry.wandb_link": (2, "tracking"),
    "template.telemetry.wandb_process": (2, "tracking"),
    # What composes them.
    "template.data.eval_set": (3, None),
    "template.miner.competitors": (3, None),
    "template.receipts.files": (3, None),
    "template.files": (3, None),
    "template.progress_bar": (3, None),
    "template.receipts.replay": (3, None),
    "template.receipts.round_files": (3, None),
    "template.workers.executor": (3, None),
    "template.workers.child": (3, None),
    "template.workers.supervisor": (3, None),
    "template.workers.worker": (3, None),
    "template.workers.ray_executor": (3, None),
    "template.workers.ray_driver": (3, None),
    "template.workers.ray_actor": (3, None),
    "template.validator.loop": (3, None),
    "template.validator.config": (3, None),
    "template.validator.downloads": (3, None),
    "template.validator.evaluation": (3, None),
    "template.validator.rounds": (3, None),
    "template.validator.weights": (3, None),
    "template.validator.reporting": (3, None),
    "template.validator.status_reading": (3, None),
    "template.validator.cleanup": (3, None),
    "template.miner.publish": (3, None),
    "template.miner.draft": (3, None),
    "template.miner.journal": (3, None),
    "template.miner.sealed": (3, None),
    "template.cli": (3, None),
    "template.localnet": (3, None),
    "template.localnet.*": (3, None),
    # What the entry points of the benchmark of the score share.
    "scripts.bench.report": (3, None),
    "scripts.bench.rows": (3, None),
    "scripts.bench.inputs": (3, None),
    "scripts.bench.job": (3, None),
    # Entry points: parse, build, call.
    "neurons.*": (4, "the entry point itself"),
    "scripts.*": (4, "the entry point itself"),
}
# Library -> the only modules that import it, whatever their layer.
OWNERS: dict[str, tuple[str, ...]] = {
    "bittensor": (
        "template.chain.client",
        "template.chain.reads",
        "template.chain.endpoints",
        "template.chain.timelock",
        "template.chain.wallets",
    ),
    "huggingface_hub": ("template.hub.datasets", "template.hub.client"),
    "httpx2": ("template.hub.datasets", "template.hub.client", "template.hub.transport"),
    "httpcore2": ("template.hub.network",),
    "sqlite3": (
        "template.store.database",
        "template.store.submissions",
        "template.store.rounds",
        "template.localnet.*",
    ),
    "wandb": ("template.telemetry.wandb_process",),
    "ray": ("template.workers.ray_driver", "template.workers.ray_actor"),
}
SEAMS = ("chain", "hub", "store", "tracking", "updates")
MODEL_LIBRARIES = {"torch", "transformers", "peft", "tokenizers", "safetensors"}
# What a pure rule must be given instead of taking it itself.
CLOCK_AND_IO = {"asyncio", "datetime", "os", "pathlib", "secrets", "shutil", "socket", "subprocess", "tempfile"} | {
    "threading",
    "time",
}


@dataclass(frozen=True)
class Edge:
    """One import: the module it stands in, its line, and the module it names."""

    source: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.source} (line {self.line}) imports {self.target}"


def find_modules(root: Path) -> dict[str, ast.Module]:
    """The parsed modules below template/, neurons/ and scripts/ by dotted name."""
    found = {}
    for folder in ("template", "neurons", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def place(module: str) -> tuple[int, str | None] | None:
    """The module's layer and group; None when it is not listed."""
    if module in LAYERS:
        return LAYERS[module]
    return next((place for pattern, place in LAYERS.items() if fnmatchcase(module, pattern)), None)


def find_edges(modules: dict[str, ast.Module]) -> list[Edge]:
    """Every import anywhere in the modules: at the top, in a function, under TYPE_CHECKING, or by import_module."""
    return [
        Edge(module, node.lineno, target)
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
        for target in imported_names(node, module, set(modules))
    ]


def imported_names(node: ast.Import | ast.ImportFrom | ast.Call, module: str, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} (line {node.lineno}): a relative import; write it in full"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in known or name in LAYERS else str(node.module)
    elif called_name(node) in ("import_module", "__import__") and node.args:
        argument = node.args[0]
        yield str(argument.value) if isinstance(argument, ast.Constant) else "a module chosen while running"


def called_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def unlisted_modules(modules: dict[str, ast.Module]) -> list[str]:
    return [
        f"{module} is not in the layer table of tests/packaging/test_imports.py; give it its layer there"
        for module in modules
        if module not in ("template", "neurons", "scripts") and place(module) is None
    ]


def bad_edges(modules: dict[str, ast.Module]) -> list[str]:
    """Edges that lead up, or sideways into another group."""
    found = []
    for edge in find_edges(modules):
        source, target = place(edge.source), place(edge.target)
        if target is None or edge.source == edge.target:
            continue
        if source is None:
            found.append(f"{edge}: no layer of its own, so it may import none")
        elif target[0] > source[0]:
            found.append(f"{edge}: upward, from layer {source[0]} to {target[0]}")
        elif target[0] == source[0] and (target[1] != source[1] or source[0] == 4):
            found.append(f"{edge}: sideways in layer {source[0]}")
    return found


def foreign_imports(modules: dict[str, ast.Module]) -> list[str]:
    """Libraries imported outside the module that owns them."""
    found = []
    for edge in find_edges(modules):
        library = edge.target.split(".")[0]
        owners = OWNERS.get(library)
        if owners is not None and not any(fnmatchcase(edge.source, owner) for owner in owners):
            found.append(f"{edge}: {library} belongs to {' and '.join(owners)}")
        source = place(edge.source)
        if library in MODEL_LIBRARIES and source is not None and (source[0] < 2 or source[1] in SEAMS):
            found.append(f"{edge}: only train and what composes it load models")
    return found


def impurities(modules: dict[str, ast.Module]) -> list[str]:
    """What the two lowest layers, and the package itself, import or call beyond pure standard library."""
    found = []
    for edge in find_edges(modules):
        library, source = edge.target.split(".")[0], place(edge.source)
        if edge.source != "template" and (source is None or source[0] > 1):
            continue
        if edge.source == "template.config" and library in ("yaml", "pathlib"):
            continue
        if library in CLOCK_AND_IO or library not in sys.stdlib_module_names | {"template"}:
            found.append(f"{edge}: not pure")
    for module, tree in modules.items():
        listed = place(module)
        if listed is None or listed[0] > 1:
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        impure = [node for node in calls if called_name(node) in ("open", "print", "input")]
        found += [f"{module} (line {node.lineno}) calls {called_name(node)}: not pure" for node in impure]
    return found


def circles(modules: dict[str, ast.Module]) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for edge in find_edges(modules):
        if edge.target in modules and edge.target not in (edge.source, "template"):
            graph[edge.source].add(edge.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


RULES = (unlisted_modules, bad_edges, foreign_imports, impurities, circles)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_breaks_no_rule(rule: Callable[[dict[str, ast.Module]], list[str]]) -> None:
    modules = find_modules(ROOT)
    assert "template.data.rows" in modules
    found = rule(modules)
    assert not found, "\n".join(["", *found])


PLANTED = {
    "upward": ({"template/data/rows.py": "from template.train import x"}, bad_edges, "upward, from layer 1 to 2"),
    "upward through the package": ({"template/data/rows.py": "from template import hub"}, bad_edges, "upward"),
    "upward to what does not exist yet": (
        {"template/chain/client.py": "import template.workers.executor"},
        bad_edges,
        "upward",
    ),
    "seam to seam": (
        {"template/store/store.py": "from template.chain.client import x"},
        bad_edges,
        "sideways in layer 2",
    ),
    "seam to train": ({"template/hub/datasets.py": "def f():\n    import template.train"}, bad_edges, "sideways"),
    "from an entry point to another": (
        {"neurons/miner.py": "import neurons.validator", "neurons/validator.py": ""},
        bad_edges,
        "sideways in layer 4",
    ),
    "the package itself": ({"template/__init__.py": "from template.errors import x"}, bad_edges, "may import none"),
    "lazy by name": (
        {"template/miner/publish.py": "import importlib\nimportlib.import_module('bittensor')"},
        foreign_imports,
        "bittensor belongs to template.chain.client",
    ),
    "second importer": (
        {"scripts/x.py": "import huggingface_hub.utils as u"},
        foreign_imports,
        "template.hub.datasets",
    ),
    "under TYPE_CHECKING": (
        {"template/workers/executor.py": "if TYPE_CHECKING:\n    from bittensor import Client"},
        foreign_imports,
        "bittensor belongs",
    ),
    "torch in a rule": ({"template/rules/scoring.py": "import torch.nn"}, foreign_imports, "only train"),
    "torch in a seam": ({"template/store/store.py": "from torch import nn"}, foreign_imports, "only train"),
    "a library in a rule": ({"template/rules/schedule.py": "import numpy"}, impurities, "not pure"),
    "a clock in a rule": ({"template/rules/schedule.py": "from time import monotonic"}, impurities, "not pure"),
    "a file in a rule": ({"template/data/rows.py": "f = open('x')"}, impurities, "calls open"),
    "yaml in a rule": ({"template/data/rows.py": "import yaml"}, impurities, "not pure"),
    "a library in the package": ({"template/__init__.py": "import loguru"}, impurities, "not pure"),
    "a new module": ({"template/utils.py": ""}, unlisted_modules, "template.utils is not in the layer table"),
    "a circle": (
        {
            "template/data/rows.py": "import template.data.chat_templates",
            "template/data/chat_templates.py": "from template.data.rows import Row",
        },
        circles,
        "template.data.rows imports template.data.chat_templates",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case: str, tmp_path: Path) -> None:
    files, rule, told = PLANTED[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = rule(find_modules(tmp_path))
    assert len(found) == 1
    assert told in found[0]


def test_what_the_design_allows_is_allowed(tmp_path: Path) -> None:
    files = {
        "template/__init__.py": "__version__ = '1'",
        "template/data/rows.py": "import template\nfrom template import constants\nfrom template.data.chat_templates import x",
        "template/config.py": "import yaml\nfrom pathlib import Path",
        "template/train.py": "import torch\nfrom template.training.model import x\nfrom template.data.rows import y",
        "template/localnet/chain.py": "import sqlite3\nfrom template.localnet import pallets\nimport template.chain.client",
        "template/localnet/pallets.py": "from template.errors import x",
        "neurons/validator.py": "import template.validator.loop",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    assert [found for rule in RULES for found in rule(find_modules(tmp_path))] == []


def loaded_by(*modules: str) -> set[str]:
    """The top-level packages outside the standard library that importing `modules` in a fresh process loads."""
    code = (
        "import importlib, json, sys\n"
        "before = set(sys.modules)\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *modules], env=environment, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout)) - sys.stdlib_module_names


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded_by("template") == {"template"}


def test_the_pure_rules_load_no_library_but_yaml() -> None:
    pure = [module for module in find_modules(ROOT) if (listed := place(module)) is not None and listed[0] < 2]
    # PyYAML's optional C part brings Cython's run time along.
    libraries = {name for name in loaded_by(*pure) if "cython" not in name}
    assert libraries - {"_yaml"} == {"template", "yaml"}
