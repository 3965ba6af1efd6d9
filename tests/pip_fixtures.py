"""Environments with pip in them, and tiny wheels for it, made without network."""

import hashlib
import shutil
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path


def make_environment(folder: Path) -> Path:
    """The interpreter of a new environment that holds pip and setuptools, copied from this one."""
    venv.create(folder, symlinks=True)
    here = Path(sysconfig.get_path("purelib"))
    there = folder / here.relative_to(sys.prefix)
    for name in ("pip", "setuptools", "_distutils_hack"):
        shutil.copytree(here / name, there / name)
    for path in (*here.glob("pip-*.dist-info"), *here.glob("setuptools-*.dist-info")):
        shutil.copytree(path, there / path.name)
    return folder / "bin" / "python"


def make_wheel(folder: Path, name: str, version: str = "1.0", *, requires: Iterable[str] = ()) -> str:
    """A package of one empty module as a wheel in `folder`; returns its line in a lock file."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
