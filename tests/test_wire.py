"""The records between a validator and its workers: the same bits back, and nothing else let through."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from test_pace import make_result

from template import wire
from template.competition import Competition
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.records import Progress
from template.settings import load_training_args

RESULT = dataclasses.replace(make_result(0.1 + 0.2, 1e-17), loss=math.nextafter(2.5, 3), step_losses=(1 / 3, 2.0))
SETUP = wire.Setup(
    competition=Competition.from_defaults(),
    training_args=load_training_args(),
    eval_data_dir="/data/\udcff",
    cache_dir=None,
    model_path="/a model",
    device="cuda:1",
    dtype=None,
    log_level="DEBUG",
)
COMMANDS: list[wire.Command] = [
    SETUP,
    wire.Job(data_dir="/d", lucky_num=2**32 - 1),
    wire.Cluster(address="auto", gpus=0.5, cpus=1, accelerator_type=None),
    wire.Stop(),
]
EVENTS: list[wire.Event] = [
    wire.Loaded(model="a/b@0 cpu float32", device="cpu", environment={"torch": "2.13"}),
    wire.Advanced(progress=Progress(stage="train", done=1, total=2), memory_bytes=None),
    wire.Advanced(progress=Progress(stage="evaluate", done=1, total=2), memory_bytes=2**40),
    wire.Scored(result=RESULT),
    wire.Failed(kind="RemoteError", message="busy", retry_after_s=1.5),
    wire.Failed(kind="SubmissionError", message="é\n\u2028", reason=Reason.MALFORMED),
    wire.Logged(level="INFO", message="two\nlines"),
    wire.Ended(why="gone", is_machine_lost=True),
]


@pytest.mark.parametrize("record", COMMANDS + EVENTS, ids=lambda record: type(record).__name__)
def test_a_record_is_one_line_and_reads_back_to_the_same_bits(record: wire.Command | wire.Event) -> None:
    line = wire.encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert len(line) < wire.MAX_LINE_BYTES
    again = wire.decode_command(line) if record in COMMANDS else wire.decode_event(line)
    assert again == record
    assert repr(again) == repr(record) or isinstance(record, wire.Scored)


def test_a_score_that_is_not_finite_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.encode(wire.Scored(result=dataclasses.replace(RESULT, loss=math.nan)))


SCORED = json.loads(wire.encode(EVENTS[3]))
GARBAGE = {
    "nothing": b"\n",
    "half a line": wire.encode(EVENTS[3])[:50],
    "a print": b"hello\n",
    "bytes": b"\xff\xfe\x00\n",
    "a list": b'["is"]\n',
    "a number": b"7\n",
    "an unknown kind": b'{"is": "Pickle"}\n',
    "no kind": b"{}\n",
    "a kind that is a list": b'{"is": []}\n',
    "a command": wire.encode(COMMANDS[1]),
    "infinite loss": json.dumps({**SCORED, "result": {**SCORED["result"], "loss": math.inf}}).encode(),
    "loss as text": json.dumps({**SCORED, "result": {**SCORED["result"], "loss": "2.5"}}).encode(),
    "a field too many": json.dumps({**SCORED, "extra": 1}).encode(),
    "a field too few": b'{"is": "Loaded", "model": "m"}\n',
    "an unknown reason": b'{"is":"Failed","kind":"SubmissionError","message":"","reason":"x","retry_after_s":null}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_event_is_this_machines_fault(case: str) -> None:
    with pytest.raises(HostError, match="no record"):
        wire.decode_event(GARBAGE[case])


def test_an_event_is_no_command() -> None:
    with pytest.raises(HostError):
        wire.decode_command(wire.encode(EVENTS[0]))


def test_an_error_keeps_its_owner_and_what_it_carries() -> None:
    refused = wire.Failed.of(SubmissionError(Reason.NO_TARGET, "line 3")).to_error()
    assert isinstance(refused, SubmissionError)
    assert (refused.reason, str(refused)) == (Reason.NO_TARGET, "line 3")
    remote = wire.Failed.of(RemoteError("busy", 30.0)).to_error()
    assert isinstance(remote, RemoteError) and remote.retry_after_s == 30.0
    assert isinstance(wire.Failed.of(ConfigError("--device")).to_error(), ConfigError)
    assert isinstance(wire.Failed.of(HostError("CUDA")).to_error(), HostError)


def test_what_nobody_meant_to_raise_is_this_machines_fault_and_never_the_miners() -> None:
    error = wire.Failed.of(ZeroDivisionError("division by zero")).to_error()
    assert type(error) is HostError and "ZeroDivisionError" in str(error)
    assert type(wire.Failed(kind="SubmissionError", message="without a reason").to_error()) is HostError
    assert type(wire.Failed(kind="Path", message=str(Path.cwd())).to_error()) is HostError
