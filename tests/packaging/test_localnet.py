"""The local network is installed without this subnet's other packages, as docs/localnet.md says."""

import re
import subprocess
import sys

from tests.fixtures.network import ROOT

# Import every module but the quickstart's models; print the names of all top-level modules.
IMPORTS = """
import importlib, pkgutil, sys
import template.localnet as package
for module in pkgutil.walk_packages(package.__path__, "template.localnet."):
    if ".models" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import template.localnet.__main__
print(*{name.partition(".")[0] for name in sys.modules})
"""
# Distributions whose module has another name.
MODULES = {"PyYAML": "yaml"}
# They come with bittensor.
OF_BITTENSOR = {"pydantic", "rich", "websockets"}


def test_local_network_needs_no_more_than_its_page_installs() -> None:
    text = (ROOT / "docs" / "localnet.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^pip install (\"bittensor.*)$", text, re.MULTILINE)
    documented = {re.split("[><]", word.strip('"'))[0] for word in line.split()}
    required = re.findall(r'^    "([\w-]+)[><]', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name for name in required if MODULES.get(name, name) in done.stdout.split()}
    assert loaded - OF_BITTENSOR == documented
