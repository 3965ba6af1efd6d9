"""The worker's own process: its errors and its output."""

import gc
import importlib.abc
import io
import subprocess
import sys
from importlib.machinery import ModuleSpec
from queue import SimpleQueue
from types import ModuleType

import pytest

import template.train
from template.errors import HostError
from template.workers import messages
from template.workers import worker as worker_main
from template.workers.executor import Evaluator, import_libraries
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


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module, and loads it as an empty one."""

    def __init__(self) -> None:
        self.is_collecting: list[bool] = []

    def find_spec(self, name: str, *_: object) -> ModuleSpec:
        return ModuleSpec(name, self)

    def exec_module(self, module: ModuleType) -> None:
        self.is_collecting.append(gc.isenabled())


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Takes the place of all libraries, as if none was imported."""
    monkeypatch.setattr(template, "train", template.train)
    monkeypatch.delitem(sys.modules, "template.train")
    finder = StandIn()
    monkeypatch.setattr(sys, "meta_path", [finder])
    return finder


def test_libraries_are_imported_without_garbage_collection(finder: StandIn) -> None:
    frozen = gc.get_freeze_count()
    import_libraries()
    assert (finder.is_collecting, gc.isenabled()) == ([False], True)
    assert gc.get_freeze_count() > frozen


@pytest.mark.usefixtures("finder")
def test_callers_collector_stays_off() -> None:
    gc.disable()
    try:
        import_libraries()
        assert not gc.isenabled()
    finally:
        gc.enable()


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
