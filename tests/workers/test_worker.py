"""The worker's own process: its errors and its output."""

import gc
import io
import subprocess
import sys
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from template.errors import HostError
from template.workers import messages
from template.workers import worker as worker_main
from template.workers.executor import Evaluator
from tests.fixtures.logs import log_lines
from tests.fixtures.network import ROOT


def test_unexpected_error_is_logged_with_its_traceback(evaluator: Evaluator) -> None:
    class Broken(Evaluator):
        def load_model(self) -> str:
            raise KeyError("a bug")

    events = io.BytesIO()
    with log_lines() as logged:
        worker_main.serve(Broken(**vars(evaluator)), SimpleQueue(), worker_main.EventWriter(events))
    event = messages.decode_event(events.getvalue())
    assert isinstance(event, messages.Failed) and type(event.to_error()) is HostError
    assert "this is a bug" in logged[0] and 'raise KeyError("a bug")' in logged[0]


def test_libraries_are_imported_without_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    is_collecting = []

    def find_spec(name: str, *_: object) -> None:
        is_collecting.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.delitem(sys.modules, "template.train", raising=False)
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find_spec)])
    with pytest.raises(ImportError, match=r"template\.train"):
        worker_main.import_libraries()
    assert (is_collecting, gc.isenabled()) == ([False], True)


def test_stray_print_goes_to_stderr() -> None:
    code = (
        "import os, sys\nfrom template.workers.worker import redirect_stdio\n"
        "commands, events = redirect_stdio()\n"
        "print('stray', flush=True); os.write(1, b'from C')\n"
        "events.write(commands.readline() + sys.stdin.read().encode()); events.flush()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=b"command\nmore", capture_output=True)
    assert ended.stdout == b"command\n"
    assert ended.stderr == b"stray\nfrom C"
