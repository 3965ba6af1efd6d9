"""A local hub in a process of its own, as a real one would be: what it takes is not the caller's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def serve_hub(root: Path) -> Iterator[str]:
    """A local hub over `root` until the end of the block; its endpoint."""
    command = [sys.executable, "-m", "template.localnet.hub.server", "--root", str(root)]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as hub:
        try:
            assert hub.stdout is not None
            yield hub.stdout.readline().strip()
        finally:
            hub.terminate()
