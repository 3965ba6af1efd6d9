"""Messages between validator and workers: equal after a round trip, and strict."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from template.competition import Competition
from template.config import load_training_args
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.records import Progress
from template.workers import messages
from template.workers.executor import Evaluator
from tests.fixtures.results import make_result

RESULT = make_result(loss=math.nextafter(2.5, 3), step_losses=(1 / 3, 2.0), train_seconds=0.1 + 0.2, eval_seconds=1e-17)
SETUP = messages.Setup(
    evaluator=Evaluator(
        competition=Competition.from_defaults(),
        training_args=load_training_args(),
        eval_data_dir=Path("/data/\xff/not UTF-8 \udcff %41"),
        model_path=Path("/a model"),
        device="cuda:1",
    ),
    log_level="DEBUG",
)
COMMANDS: list[messages.Command] = [
    SETUP,
    messages.Job(data_dir=Path("/d"), lucky_num=2**32 - 1),
    messages.RayConfig(gpus_per_worker=0.5),
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
def test_message_round_trip_keeps_every_bit(record: messages.Command | messages.Event) -> None:
    line = messages.encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert len(line) < messages.MAX_LINE_BYTES
    again = messages.decode_command(line) if record in COMMANDS else messages.decode_event(line)
    assert again == record
    assert repr(again) == repr(record) or isinstance(record, messages.Evaluated)


def test_message_text_outside_utf8_is_escaped() -> None:
    sent = messages.Failed(kind="HostError", message="cannot read /data/\udcff")
    assert messages.decode_event(messages.encode(sent)).message == "cannot read /data/\\udcff"


def test_encode_non_finite_loss_raises() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        messages.encode(messages.Evaluated(result=dataclasses.replace(RESULT, loss=math.nan)))


EVALUATED = json.loads(messages.encode(EVENTS[3]))
GARBAGE = {
    "nothing": b"\n",
    "half a line": messages.encode(EVENTS[3])[:50],
    "a print": b"hello\n",
    "bytes": b"\xff\xfe\x00\n",
    "a number": b"7\n",
    "an unknown kind": b'{"is": "Pickle"}\n',
    "no kind": b"{}\n",
    "a kind that is a list": b'{"is": []}\n',
    "a command": messages.encode(COMMANDS[1]),
    "infinite loss": json.dumps({**EVALUATED, "result": {**EVALUATED["result"], "loss": math.inf}}).encode(),
    "a field too few": b'{"is": "Loaded", "model": "m"}\n',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", GARBAGE)
def test_decode_event_garbage_is_a_host_error(case: str) -> None:
    with pytest.raises(HostError, match="protocol error: cannot parse"):
        messages.decode_event(GARBAGE[case])


def test_decode_command_refuses_an_event() -> None:
    with pytest.raises(HostError):
        messages.decode_command(messages.encode(EVENTS[0]))


@pytest.mark.parametrize(
    "error",
    [
        SubmissionError(Reason.NO_TARGET, "line 3"),
        RemoteError("busy", 30.0),
        ConfigError("--device"),
        HostError("CUDA"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failed_round_trip_keeps_class_and_details(error: SubnetError) -> None:
    rebuilt = messages.Failed.of(error).to_error()
    assert (type(rebuilt), str(rebuilt), vars(rebuilt)) == (type(error), str(error), vars(error))


def test_failed_unexpected_error_is_a_host_error() -> None:
    error = messages.Failed.of(ZeroDivisionError("division by zero")).to_error()
    assert type(error) is HostError and "ZeroDivisionError" in str(error)
    for kind in ("SubmissionError", "Path"):
        assert type(messages.Failed(kind=kind, message="without a reason").to_error()) is HostError
