"""Compare the distribution, its lock file and its scripts with the code."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from template import __version__
from tests.fixtures.network import ROOT
from tests.fixtures.source import PRODUCT, parse

DISTRIBUTIONS = importlib.metadata.packages_distributions()
SUPPORTED = ("3.11", "3.12", "3.13")
OURS = {*PRODUCT, "tests", "contrib"}
# Requirements of CUDA builds of torch only, pinned by torch's own metadata.
CUDA_ONLY = re.compile(r"nvidia-|cuda-|triton")


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """Return the arguments of setup(), read in a child: setuptools replaces distutils."""
    code = (
        "import json, runpy, setuptools\n"
        "setuptools.setup = lambda **arguments: print(json.dumps(arguments))\n"
        "runpy.run_path('setup.py')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def lock() -> dict[str, Version]:
    """Map distributions to versions; fail unless each has one exact pin and hashes."""
    pins: dict[str, Version] = {}
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", "")
    assert re.findall("^# apart: (.*)$", text, re.MULTILINE) == re.findall("torch==[0-9.]+$", text, re.MULTILINE)
    for line in text.replace("# apart: ", "").splitlines():
        if line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)((?: +--hash=sha256:[0-9a-f]{64})*)", line)
        assert pin, f"not an exact pin without a local label: {line!r}"
        assert bool(pin[3]) != (pin[1] == "torch"), f"{line}: torch alone has no hashes"
        name = canonicalize_name(pin[1])
        assert name not in pins, f"{name} is pinned twice"
        pins[name] = Version(pin[2])
    return pins


def requirements(lines: Iterable[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


def every_requirement(described: dict[str, Any]) -> list[Requirement]:
    """Return every locked requirement: all extras but `fuzz`."""
    return requirements([*described["install_requires"], *described["extras_require"]["dev"]])


def declared(described: dict[str, Any], *extras: str) -> set[str]:
    """Return the names of the requirements of an installation with these extras."""
    lines = (line for extra in extras for line in described["extras_require"][extra])
    return names(requirements([*described["install_requires"], *lines]))


def names(result: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in result}


def imported_libraries(*folders: str) -> dict[str, str]:
    """Map third-party top-level modules to the file that imports them."""
    result: dict[str, str] = {}
    for path, tree in parse(*folders).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                result |= {alias.name.split(".")[0]: str(path) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                result[node.module.split(".")[0]] = str(path)
    return {module: where for module, where in result.items() if module not in sys.stdlib_module_names | OURS}


def providers(module: str) -> set[str]:
    """Return the distributions that provide a module, or its own name."""
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(module, [module])}


def committed_files() -> list[Path]:
    """Return the files of the repository, tracked or not yet tracked."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# Extras: ray for --executor ray, which asks for it, fuzz for -m tests.campaigns.fuzz, docs for mkdocs.
@pytest.mark.parametrize(
    ("folders", "extras"), [(PRODUCT, ("ray", "fuzz", "docs")), (("tests", "contrib"), ("test", "quickstart", "fuzz"))]
)
def test_every_import_is_required(described: dict[str, Any], folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    imported = imported_libraries(*folders)
    required = declared(described, *extras)
    assert {module: where for module, where in imported.items() if not providers(module) & required} == {}


def test_every_installation_requirement_is_imported(described: dict[str, Any]) -> None:
    assert declared(described) <= set().union(*(providers(module) for module in imported_libraries(*PRODUCT)))


def test_the_dev_extra_holds_all_others(described: dict[str, Any]) -> None:
    extras = dict(described["extras_require"])
    dev = set(extras.pop("dev"))
    extras.pop("fuzz")
    assert dev == {line for lines in extras.values() for line in lines}


def test_every_requirement_is_justified_in_a_line_and_no_other(described: dict[str, Any]) -> None:
    extras = described["extras_require"]
    justified = dict[str, set[str]]()
    for line in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| `([\w-]+)` \| (?:`(\w+)` \| )?\S+.* \|$", line):
            section = justified.setdefault(row[2] or "", set())
            assert canonicalize_name(row[1]) not in section, line
            section.add(canonicalize_name(row[1]))
    assert justified.pop("") == names(requirements(described["install_requires"]))
    assert justified == {name: names(requirements(lines)) for name, lines in extras.items() if name != "dev"}


def test_the_lock_meets_every_lower_bound(described: dict[str, Any], lock: dict[str, Version]) -> None:
    for requirement in every_requirement(described):
        assert any(part.operator in (">=", "==") for part in requirement.specifier), requirement
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", SUPPORTED)
def test_the_lock_covers_what_the_requirements_require(
    described: dict[str, Any], lock: dict[str, Version], python: str
) -> None:
    waiting, seen = every_requirement(described), set[str]()
    while waiting:
        requirement = waiting.pop()
        key = f"{canonicalize_name(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        name = canonicalize_name(requirement.name)
        assert name in lock, f"the lock has no pin for {requirement}"
        assert requirement.specifier.contains(lock[name], prereleases=True), f"the lock breaks {requirement}"
        waiting += required_by(name, requirement.extras, python)
    assert set(lock) <= {key.split("[")[0] for key in seen}, "the lock pins what nothing requires"


def required_by(name: str, extras: set[str], python: str) -> Iterator[Requirement]:
    version = {"python_version": python, "python_full_version": f"{python}.0"}
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        wanted = [{**version, "extra": extra} for extra in ("", *extras)]
        if requirement.marker is not None and not any(requirement.marker.evaluate(each) for each in wanted):
            continue
        if not (name == "torch" and CUDA_ONLY.match(requirement.name)):
            yield requirement


def test_this_environment_is_the_one_that_is_locked(lock: dict[str, Version]) -> None:
    installed = {name: Version(importlib.metadata.version(name)) for name in lock}
    assert {name: Version(version.public) for name, version in installed.items()} == lock


def test_declared_versions_are_those_of_the_workflow(described: dict[str, Any]) -> None:
    supported = SpecifierSet(described["python_requires"])
    assert tuple(f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}.0")) == SUPPORTED
    prefix = "Programming Language :: Python :: "
    assert tuple(line.removeprefix(prefix) for line in described["classifiers"] if prefix in line) == SUPPORTED
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert tuple(workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]) == SUPPORTED


@pytest.mark.parametrize("version", [*SUPPORTED, "3.10", "3.14"])
def test_scripts_accept_the_supported_versions_alone(version: str, tmp_path: Path) -> None:
    stub = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0); exec(sys.argv[2])"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{stub}' \"$@\"\n")
    python.chmod(0o755)
    code = f'source "{ROOT}/scripts/python.sh" && find_python'
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == (f"{python}\n" if version in SUPPORTED else "")
    assert bool(done.returncode) == ("3.11, 3.12 or 3.13" in done.stderr) == (version not in SUPPORTED)


def test_the_version_is_the_package_s_own(described: dict[str, Any]) -> None:
    assert described["version"] == __version__


def test_every_package_folder_is_installed(described: dict[str, Any]) -> None:
    holding_code = {path.parent for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")}
    holding_code -= {ROOT / "scripts" / "bench", ROOT / "scripts" / "dev"}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in holding_code} == set(described["packages"])


def test_every_console_command_names_a_function_that_exists(described: dict[str, Any]) -> None:
    for command in described["entry_points"]["console_scripts"]:
        module, function = command.split("=")[1].strip().split(":")
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        assert path.is_file(), command
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert function in {node.name for node in body if isinstance(node, ast.FunctionDef)}, command


@pytest.mark.parametrize("name", ["neurons/validator.py", "neurons/miner.py", "scripts/compute_loss.py"])
def test_an_entry_point_is_also_a_script(name: str) -> None:
    assert re.search(r'^if __name__ == "__main__":$', (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_shell_script_passes_shellcheck_and_stops() -> None:
    scripts = [path for path in committed_files() if path.suffix == ".sh"] + [ROOT / ".ci" / "run"]
    assert ROOT / "scripts" / "test.sh" in scripts
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        if text.startswith("#!"):
            assert "\nset -euo pipefail\n" in text, script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_set_up_without_the_right_python_names_it(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "cat"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    environment = {"PATH": str(tmp_path), "VENV": str(tmp_path / "venv")}
    command = [tmp_path / "bash", ROOT / "scripts" / "setup.sh"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_one_file_alone_has_the_placeholder_of_the_address() -> None:
    placeholder = b"OWNER" + b"/REPOSITORY"
    assert [path.name for path in committed_files() if placeholder in path.read_bytes()] == ["setup.py"]


def test_no_file_names_a_registry_or_one_machine() -> None:
    # Written in pieces: this file is read too.
    forbidden = ["pypi" + ".org", "python" + "hosted", "/work" + "/", "/opt" + "/", "index" + "-url", "find" + "-links"]
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}" for word in forbidden).encode())
    assert [path for path in committed_files() if pattern.search(path.read_bytes())] == []
