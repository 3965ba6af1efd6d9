"""Test that setup installs only files whose hash is in the lock file."""

import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.dev import lock_hashes
from template.errors import HostError
from tests.fixtures.http import Answer, serve
from tests.fixtures.network import ROOT, call_main
from tests.fixtures.pip import make_environment, make_wheel


class Clone:
    """A checkout whose environment scripts/setup.sh makes from a folder of wheels."""

    def __init__(self, folder: Path) -> None:
        self.root, self.wheels = folder / "clone", folder / "wheels"
        self.python = make_environment(folder / "venv")
        self.wheels.mkdir()
        (self.root / "scripts").mkdir(parents=True)
        (self.root / "template").mkdir()
        (self.root / "template" / "__init__.py").write_text("")
        (self.root / "setup.py").write_text("import setuptools\nsetuptools.setup(name='under-test', packages=[])\n")
        for name in ("setup.sh", "python.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts" / name)

    def set_up(self, lock: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the script with a lock file of this text."""
        (self.root / "requirements.lock").write_text(lock)
        environment = {
            **os.environ,
            **{"VENV": str(self.python.parent.parent), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)},
            **{"INSTALLER": "pip", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(self.wheels), "UV_OFFLINE": "1"},
            **variables,
        }
        command = ["bash", self.root / "scripts" / "setup.sh"]
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)

    def installed(self) -> set[str]:
        """Return names and versions of the installed packages, without tools."""
        shown = subprocess.run(
            [self.python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
        )
        listed = {(row["name"], row["version"]) for row in json.loads(shown.stdout)}
        return {f"{name}=={version}" for name, version in listed if name not in ("pip", "setuptools", "under-test")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("setup"))


@pytest.mark.slow
def test_locked_packages_and_torch_are_installed(clone: Clone) -> None:
    lock = make_wheel(clone.wheels, "needed")
    # As a build of torch asks for the CUDA libraries that it was made for; no other package may.
    make_wheel(clone.wheels, "torch", "2.13.0+cu999", requires=["needed", "cudalib==3.0"])
    make_wheel(clone.wheels, "cudalib", "3.0")
    tool = make_wheel(clone.wheels, "tool")
    lock = f"# header\n# apart: torch==2.13.0\n# --- the product\n{lock}# --- tests, checks\n{tool}"
    done = clone.set_up(lock, WITHOUT_TOOLS="1")
    assert done.returncode == 0, done.stderr
    of_another_test = {"checked==1.0"}
    assert clone.installed() - of_another_test == {"needed==1.0", "torch==2.13.0+cu999", "cudalib==3.0"}
    done = clone.set_up(lock)
    assert done.returncode == 0, done.stderr
    assert "tool==1.0" not in clone.installed(), "the choice holds for later starts without the variable"
    done = clone.set_up(lock, WITHOUT_TOOLS="")
    assert done.returncode == 0, done.stderr
    assert "tool==1.0" in clone.installed()
    again = clone.set_up(lock)
    assert again.returncode == 0 and "Installing" not in again.stdout


def swap(folder: Path) -> str:
    """Lock a wheel and replace it by another of the same name."""
    line = make_wheel(folder, "wrong")
    make_wheel(folder, "wrong", requires=["something-else"])
    return line


REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "another hash": (lambda folder: f"{make_wheel(folder, 'wrong')[:-9]}00000000\n", "DO NOT MATCH THE HASHES"),
    "no hash": (lambda folder: f"{make_wheel(folder, 'wrong').split()[0]}\n", "Hashes are required"),
    "a range": (lambda folder: make_wheel(folder, "wrong").replace("==", ">="), "their versions pinned with =="),
    "another file": (swap, "DO NOT MATCH THE HASHES"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_hash_installs_nothing(clone: Clone, case: str) -> None:
    lock, expected = REFUSED[case]
    done = clone.set_up(lock(clone.wheels))
    assert done.returncode == 1
    assert expected in done.stderr and "could not be installed" in done.stderr
    assert "Environment ready" not in done.stdout
    assert not any(name.startswith("wrong") for name in clone.installed())


@pytest.mark.slow
def test_torch_does_not_replace_a_checked_package(clone: Clone) -> None:
    lock = make_wheel(clone.wheels, "checked")
    make_wheel(clone.wheels, "checked", "2.0")
    make_wheel(clone.wheels, "torch", "2.13.1", requires=["checked>=2"])
    done = clone.set_up(f"# apart: torch==2.13.1\n{lock}")
    assert done.returncode == 1 and "conflicting dependencies" in done.stderr, done.stdout
    assert "checked==2.0" not in clone.installed()


@pytest.mark.slow
def test_uv_installs_the_same_and_checks_hashes(clone: Clone) -> None:
    if shutil.which("uv") is None:
        pytest.skip("no uv on this machine: pip alone was tried")
    line = make_wheel(clone.wheels, "fast")
    make_wheel(clone.wheels, "torch", "2.13.2+cu999", requires=["fast"])
    done = clone.set_up(f"# apart: torch==2.13.2\n{line}", INSTALLER="")
    assert done.returncode == 0, done.stderr
    assert {"fast==1.0", "torch==2.13.2+cu999"} <= clone.installed()
    for wrong in (make_wheel(clone.wheels, "forged")[:-9] + "00000000\n", "forged==1.0\n"):
        done = clone.set_up(wrong, INSTALLER="")
        assert done.returncode == 1 and "the message of uv is above" in done.stderr, done.stderr
        assert not any(name.startswith("forged") for name in clone.installed())


FILES = ["Odd_Name-1.0-py3-none-any.whl", "odd_name-1.0-cp311-cp311-win_amd64.whl", "odd-name-1.0.tar.gz"]
OTHERS = ["odd_name-1.0.1-py3-none-any.whl", "odd-name-11.0.tar.gz", "odd_name-1.0.exe"]
DIGESTS = {name: hashlib.sha256(name.encode()).hexdigest() for name in [*FILES, *OTHERS]}
EXPECTED = " \\\n    ".join(
    ["Odd_Name==1.0", *(f"--hash=sha256:{line}" for line in sorted(DIGESTS[name] for name in FILES))]
)


def write_page(folder: Path, content: str) -> str:
    """Return the address of an index of one page, on disk."""
    (folder / "odd-name").mkdir()
    (folder / "odd-name" / "index.html").write_text(content)
    return folder.as_uri()


def answer_in_json(request: http.server.BaseHTTPRequestHandler) -> Answer:
    """Answer as an index does to a client that accepts JSON."""
    is_right = request.path == "/simple/odd-name/" and "v1+json" in request.headers["Accept"]
    files = [{"filename": name, "hashes": {"sha256": digest}} for name, digest in DIGESTS.items()]
    headers = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
    return (200 if is_right else 404), headers, json.dumps({"files": files}).encode()


def test_the_files_of_a_release_are_hashed_from_any_index(tmp_path: Path) -> None:
    links = "".join(f'<a href="../f/{name}#sha256={digest}">{name}</a>\n' for name, digest in DIGESTS.items())
    index = write_page(tmp_path, f"<!DOCTYPE html><html><body>{links}</body></html>")
    assert list(lock_hashes.hashed_lines(index, ["Odd_Name==1.0"])) == [EXPECTED]
    with serve(answer_in_json) as url:
        assert list(lock_hashes.hashed_lines(f"{url}/simple", ["Odd_Name==1.0"])) == [EXPECTED]


def test_a_release_without_hashes_ends_it_with_nothing_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_page(tmp_path, f'<a href="{FILES[0]}">bare</a><a href="{FILES[2]}#sha256={DIGESTS[FILES[2]]}">x</a>')
    refused = {"odd-name==1.0": f"no sha256 of {FILES[0]}", "odd-name==3": "no file of", "x==1": "list"}
    for pin, expected in refused.items():
        with pytest.raises(HostError, match=expected):
            lock_hashes.hashes_of(index, pin)
    monkeypatch.setattr("sys.stdin", io.StringIO("odd-name==1.0\n"))
    ended = call_main(lock_hashes.main, "--index", index)
    assert ended.status == HostError.exit_code and ended.output == "" and "error: " in ended.logs[0]
