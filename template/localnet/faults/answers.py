"""Wrong answers of a node, each made of the right one.

A fault changes the result, the message around it, or the connection.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from template.errors import ConfigError

ANY_METHOD = "*"
_NESTING = 100_000
_FOREIGN_ID = 1_000_000

Message = dict[str, Any]


class Ending(Enum):
    """What happens to the connection after the frames of a reply."""

    OPEN = "open"
    CLOSED = "closed"
    DROPPED = "dropped"
    DROPPED_IN_FRAME = "dropped in frame"


@dataclass(frozen=True)
class Reply:
    """Frames in place of a message."""

    frames: tuple[str | bytes, ...]
    ending: Ending = Ending.OPEN


class AnswerFaults:
    """The faults of the next answers, by method."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._remaining: Counter[str] = Counter()
        self._draw = random.Random(0)

    def set(self, method: str, kind: str, calls: int = 1) -> int:
        """Give the next `calls` answers of a method a fault; 0 ends it.

        Returns how many answers the method's fault before had left. method: also the name of a notification, or "*" for
        all. Raises: ConfigError for an unknown fault.
        """
        if kind not in ANSWER_FAULTS:
            raise ConfigError(f"the fault must be one of {', '.join(ANSWER_FAULTS)}, not {kind!r}")
        unused = self._remaining[method]
        self._kinds[method], self._remaining[method] = kind, calls
        return unused

    def reply(self, method: str, message: Message) -> Reply | None:
        """Return the reply of the method's fault and count it off; None without one."""
        for name in (method, ANY_METHOD):
            if self._remaining[name] > 0:
                self._remaining[name] -= 1
                return make_reply(self._kinds[name], message, self._draw)
        return None


def make_reply(kind: str, message: Message, draw: random.Random) -> Reply:
    """Return the reply of a fault in place of an answer or a notification."""
    if kind in _RESULTS:
        return Reply((json.dumps(_replace_result(message, _RESULTS[kind], draw)),))
    if kind in _MESSAGES:
        return Reply(_MESSAGES[kind](message))
    frames, ending = _ENDINGS[kind]
    return Reply((json.dumps(message),) if frames else (), ending)


def _replace_result(message: Message, change: "Change", draw: random.Random) -> Message:
    if "params" in message:
        return {**message, "params": _replace_result(message["params"], change, draw)}
    return {**message, "result": change(message.get("result"), draw)}


def _replace_id(message: Message, change: Callable[[Any], Any]) -> tuple[str]:
    if "params" in message:
        params = message["params"]
        message = {**message, "params": {**params, "subscription": change(params["subscription"])}}
    else:
        message = {**message, "id": change(message.get("id"))}
    return (json.dumps(message),)


def _error_frame(message: Message, error: Any) -> tuple[str]:
    return (json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "error": error}),)


def _cut_text(message: Message) -> tuple[str]:
    text = json.dumps(message)
    return (text[: len(text) // 2],)


def _in_bytes(change: Callable[[bytes, random.Random], bytes]) -> "Change":
    """Return a change of every byte string in a result."""

    def apply(result: Any, draw: random.Random) -> Any:
        if isinstance(result, dict):
            return {name: apply(value, draw) for name, value in result.items()}
        if isinstance(result, list):
            return [apply(value, draw) for value in result]
        if not (isinstance(result, str) and result.startswith("0x")):
            return result
        digits = result[2:]
        return "0x" + change(bytes.fromhex(digits.rjust(len(digits) + len(digits) % 2, "0")), draw).hex()

    return apply


def _flip_bit(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def _drop_part(result: Any, draw: random.Random) -> Any:
    """Leave out a field of a record or an element of a list."""
    if isinstance(result, dict) and result:
        missing = draw.choice(sorted(result))
        return {name: value for name, value in result.items() if name != missing}
    if isinstance(result, list) and result:
        return result[1:]
    return None


def _null_part(result: Any, draw: random.Random) -> Any:
    """Set a field of a record or an element of a list to null."""
    if isinstance(result, dict) and result:
        return {**result, draw.choice(sorted(result)): None}
    if isinstance(result, list) and result:
        return [None, *result[1:]]
    return None


Change = Callable[[Any, random.Random], Any]


def _always(value: Any) -> Change:
    return lambda result, draw: value


_RESULTS: dict[str, Change] = {
    "null": _always(None),
    "empty_text": _always(""),
    "empty_bytes": _always("0x"),
    "empty_list": _always([]),
    "empty_record": _always({}),
    "true": _always(True),
    "zero": _always(0),
    "negative_number": _always(-1),
    "large_number": _always(2**70),
    "fraction": _always(0.5),
    "plain_text": _always("unavailable"),
    "list_of_nulls": _always([None, None]),
    "half_of_the_bytes": _in_bytes(lambda data, draw: data[: len(data) // 2]),
    "too_many_bytes": _in_bytes(lambda data, draw: data + bytes(7)),
    "zero_bytes": _in_bytes(lambda data, draw: bytes(len(data))),
    "full_bytes": _in_bytes(lambda data, draw: b"\xff" * len(data)),
    "changed_bit": _in_bytes(_flip_bit),
    "missing_part": _drop_part,
    "null_part": _null_part,
}

_MESSAGES: dict[str, Callable[[Message], tuple[str | bytes, ...]]] = {
    "wrong_id": lambda message: _replace_id(message, lambda _: _FOREIGN_ID),
    "text_id": lambda message: _replace_id(message, str),
    "null_id": lambda message: _replace_id(message, lambda _: None),
    "list_id": lambda message: _replace_id(message, lambda number: [number]),
    "no_result": lambda message: (json.dumps({"jsonrpc": "2.0", "id": message.get("id")}),),
    "answered_twice": lambda message: (json.dumps(message),) * 2,
    "in_a_list": lambda message: (json.dumps([message]),),
    "error": lambda message: _error_frame(message, {"code": -32603, "message": "the node failed (injected fault)"}),
    "error_without_text": lambda message: _error_frame(message, {}),
    "error_as_text": lambda message: _error_frame(message, "the node failed"),
    "error_null": lambda message: _error_frame(message, None),
    "rate_limit": lambda message: _error_frame(
        message, {"code": -32005, "message": "too many requests", "data": {"policy": "local", "retry_after": "7"}}
    ),
    "web_page": lambda message: ("<html><body>502 Bad Gateway</body></html>",),
    "half_of_the_text": _cut_text,
    "empty_frame": lambda message: ("",),
    "number_frame": lambda message: ("5",),
    "null_frame": lambda message: ("null",),
    "text_frame": lambda message: ('"id"',),
    "binary_frame": lambda message: (b"\xff\xfe\x00",),
    "nested_frame": lambda message: ("[" * _NESTING,),
}

# Whether the answer is sent, and what happens then.
_ENDINGS: dict[str, tuple[bool, Ending]] = {
    "silence": (False, Ending.OPEN),
    "drop": (False, Ending.DROPPED),
    "drop_in_answer": (True, Ending.DROPPED_IN_FRAME),
    "drop_after_answer": (True, Ending.DROPPED),
    "close": (False, Ending.CLOSED),
}

ANSWER_FAULTS = (*_RESULTS, *_MESSAGES, *_ENDINGS)
# Those whose answer a right node of another chain could give.
PLAUSIBLE_FAULTS = frozenset(_RESULTS)
