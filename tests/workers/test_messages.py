"""The records between a validator and its workers: the same bits back, and nothing else let through."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from template.competition import Competition
from template.config import load_training_args
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError
from template.records import Progress
from template.workers import messages
from tests.workers.test_timeouts import make_result

RESULT = dataclasses.replace(make_result(0.1 + 0.2, 1e-17), loss=math.nextafter(2.5, 3), step_losses=(1 / 3, 2.0))
SETUP = messages.Setup(
    competition=Competition.from_defaults(),
    training_args=load_training_args(),
    eval_data_dir="/data/\xff",
    cache_dir=None,
    model_path="/a model",
    device="cuda:1",
    dtype=None,
    log_level="DEBUG",
)
COMMANDS: list[messages.Command] = [
    SETUP,
    messages.Job(data_dir="/d", lucky_num=2**32 - 1),
    messages.RayConfig(address="auto", gpus=0.5, cpus=1, accelerator_type=None),
    messages.StopWorker(),
]
EVENTS: list[messages.Event] = [
    messages.Loaded(model="a/b@0 cpu float32", device="cpu", environment={"torch": "2.13"}),
    messages.ProgressUpdate(progress=Progress(stage="train", done=1, total=2), memory_bytes=None),
    messages.ProgressUpdate(progress=Progress(stage="evaluate", done=1, total=2), memory_bytes=2**40),
    messages.Evaluated(result=RESULT),
    messages.Failed(kind="RemoteError", message="busy", retry_after_s=1.5),
    messages.Failed(kind="SubmissionError", message="é\n\u2028", reason=Reason.MALFORMED),
    messages.Logged(level="INFO", message="two\nlines"),
    messages.WorkerExited(why="gone", is_machine_lost=True),
]


@pytest.mark.parametrize("record", COMMANDS + EVENTS, ids=lambda record: type(record).__name__)
def test_a_record_is_one_line_and_reads_back_to_the_same_bits(record: messages.Command | messages.Event) -> None:
    line = messages.encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert len(line) < messages.MAX_LINE_BYTES
    again = messages.decode_command(line) if record in COMMANDS else messages.decode_event(line)
    assert again == record
    assert repr(again) == repr(record) or isinstance(record, messages.Evaluated)


def test_text_outside_utf8_arrives_escaped() -> None:
    sent = messages.Failed(kind="HostError", message="cannot read /data/\udcff")
    assert messages.decode_event(messages.encode(sent)) == dataclasses.replace(
        sent, message="cannot read /data/\\udcff"
    )


def test_a_score_that_is_not_finite_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        messages.encode(messages.Evaluated(result=dataclasses.replace(RESULT, loss=math.nan)))


SCORED = json.loads(messages.encode(EVENTS[3]))
GARBAGE = {
    "nothing": b"\n",
    "half a line": messages.encode(EVENTS[3])[:50],
    "a print": b"hello\n",
    "bytes": b"\xff\xfe\x00\n",
    "a list": b'["is"]\n',
    "a number": b"7\n",
    "an unknown kind": b'{"is": "Pickle"}\n',
    "no kind": b"{}\n",
    "a kind that is a list": b'{"is": []}\n',
    "a command": messages.encode(COMMANDS[1]),
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
        messages.decode_event(GARBAGE[case])


def test_an_event_is_no_command() -> None:
    with pytest.raises(HostError):
        messages.decode_command(messages.encode(EVENTS[0]))


def test_an_error_keeps_its_owner_and_what_it_carries() -> None:
    refused = messages.Failed.of(SubmissionError(Reason.NO_TARGET, "line 3")).to_error()
    assert isinstance(refused, SubmissionError)
    assert (refused.reason, str(refused)) == (Reason.NO_TARGET, "line 3")
    remote = messages.Failed.of(RemoteError("busy", 30.0)).to_error()
    assert isinstance(remote, RemoteError) and remote.retry_after_s == 30.0
    assert isinstance(messages.Failed.of(ConfigError("--device")).to_error(), ConfigError)
    assert isinstance(messages.Failed.of(HostError("CUDA")).to_error(), HostError)


def test_what_nobody_meant_to_raise_is_this_machines_fault_and_never_the_miners() -> None:
    error = messages.Failed.of(ZeroDivisionError("division by zero")).to_error()
    assert type(error) is HostError and "ZeroDivisionError" in str(error)
    assert type(messages.Failed(kind="SubmissionError", message="without a reason").to_error()) is HostError
    assert type(messages.Failed(kind="Path", message=str(Path.cwd())).to_error()) is HostError
