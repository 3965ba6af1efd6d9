"""Check imports by room: a folder of template/, or a module beside them."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.fixtures.network import ROOT

GROUND = "constants errors"
RECORDS = f"competition chain_records records {GROUND}"
CLI = f"arguments terminal proxies {RECORDS}"
# Room: the rooms that it may import besides itself.
ROOMS = {
    "": "",
    "errors": "",
    "constants": "",
    "chain_records": "",
    "records": f"chain_records competition {GROUND}",
    "competition": GROUND,
    "files": GROUND,
    "proxies": GROUND,
    "stop_request": "",
    "config": f"competition {GROUND}",
    "serialization": f"competition {GROUND}",
    "terminal": "constants records",
    "arguments": "terminal errors",
    "console": "terminal",
    "data": RECORDS,
    "rules": RECORDS,
    "chain": f"chain_records records {GROUND}",
    "hub": f"competition files proxies {GROUND}",
    "store": f"rules files {RECORDS}",
    "telemetry": f"terminal chain_records records {GROUND}",
    "training": f"data config records {GROUND}",
    "train": f"training data config records {GROUND}",
    "localnet": f"arguments stop_request chain telemetry competition {GROUND}",
    "miner": f"data rules chain hub files serialization console terminal {RECORDS}",
    "workers": f"train training hub telemetry data config serialization {RECORDS}",
    "receipts": f"rules workers hub data chain config serialization files terminal {RECORDS}",
    "site": f"receipts rules terminal {RECORDS}",
    "status": f"store files rules console terminal telemetry {RECORDS}",
    "validator": f"files workers receipts telemetry chain store hub data rules stop_request terminal {RECORDS}",
    "updates": f"telemetry {GROUND}",
    "cli": f"receipts workers hub chain training telemetry data config files serialization {CLI}",
    "doctor": f"cli status store workers training telemetry hub chain files config data {CLI}",
    "neurons": "*",
    "scripts": "*",
}
PURE = ("errors", "constants", "chain_records", "records", "competition", "data", "rules")
# Library: the modules that may import it.
LIBRARIES = {
    "bittensor": "template.chain.*",
    "huggingface_hub": "template.hub.*",
    "httpx2": "template.hub.*",
    "sqlite3": "template.store.* template.localnet.*",
    "wandb": "template.telemetry.*",
    "jinja2": "template.site.*",
    "prometheus_client": "template.status.*",
    "ray": "template.workers.ray_driver template.workers.ray_actor",
    **dict.fromkeys(
        ("torch", "transformers", "peft", "tokenizers", "safetensors"),
        "template.train template.training.* template.workers.* template.localnet.* scripts.bench.*",
    ),
}


def find_imports(root: Path) -> Iterator[tuple[str, str]]:
    """Yield importer and imported module of every import, lazy ones included."""
    files = [path for folder in ("template", "neurons", "scripts") for path in (root / folder).rglob("*.py")]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    for path, module in names.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: write relative imports in full"
                joined = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from ((module, name if name in names.values() else str(node.module)) for name in joined)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield module, str(ast.literal_eval(node.args[0]))


def room(module: str) -> str:
    """Return the room of a module; `""` is the package itself."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "template" else top


def is_own(module: str) -> bool:
    return module.split(".")[0] in ("template", "neurons", "scripts")


def find_faults(root: Path) -> list[str]:
    """Return the imports that the tables forbid, and circles."""
    faults, graph = [], dict[str, set[str]]()
    for source, target in find_imports(root):
        allowed = ROOMS.get(room(source), "").split()
        owners = LIBRARIES.get(target.split(".")[0])
        if room(source) not in ROOMS:
            faults.append(f"{source}: a new room; add it to ROOMS and to CONTRIBUTING.md")
        elif owners and not any(fnmatchcase(source, owner) for owner in owners.split()):
            faults.append(f"{source} imports {target}: only {owners} may")
        elif not is_own(target):
            if room(source) in PURE and target.split(".")[0] not in sys.stdlib_module_names:
                faults.append(f"{source} imports {target}: this room uses the standard library only")
        elif room(target) not in ("", room(source), *allowed) and allowed != ["*"]:
            faults.append(f"{source} imports {target}: {room(source)} may import {' '.join(allowed) or 'nothing'}")
        elif target not in (source, "template"):
            graph.setdefault(source, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        faults.append(f"a circle: {' imports '.join(reversed(error.args[1]))}")
    return faults


def test_imports_follow_the_rooms() -> None:
    faults = find_faults(ROOT)
    assert not faults, "\n".join(["", *faults])


PLANTED = {
    "template/data/rows.py": ("from template.train import x", "data may import"),
    "template/store/store.py": ("from template.chain import client", "store may import"),
    "template/hub/datasets.py": ("def f():\n    import template.training.model", "hub may import"),
    "template/miner/check.py": ("import importlib\nimportlib.import_module('bittensor')", "only template.chain"),
    "template/workers/child.py": ("if TYPE_CHECKING:\n    import bittensor", "only template.chain"),
    "template/rules/scoring.py": ("import torch.nn", "only template.train"),
    "template/rules/schedule.py": ("import numpy", "standard library only"),
    "template/utils.py": ("import os", "a new room"),
    "template/errors.py": ("from template.constants import x", "may import nothing"),
}


@pytest.mark.parametrize("path", PLANTED)
def test_a_forbidden_import_is_found(path: str, tmp_path: Path) -> None:
    text, expected = PLANTED[path]
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    (fault,) = find_faults(tmp_path)
    assert expected in fault


def test_a_circle_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "template" / "data"
    folder.mkdir(parents=True)
    (folder / "rows.py").write_text("import template.data.encoding")
    (folder / "encoding.py").write_text("from template.data.rows import Row")
    (fault,) = find_faults(tmp_path)
    assert fault.startswith("a circle")


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import template; import json; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)} - set(sys.stdlib_module_names)
    assert {name for name in loaded if not name.startswith("_")} == {"template"}
