"""Likely causes of malformed rows, added to error messages."""

import re
import unicodedata
from collections.abc import Mapping

_BINARY = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"PK\x03\x04": "a zip file: unpack it first",
    b"(\xb5/\xfd": "a zstd file: unpack it first",
    b"PAR1": "a Parquet file: convert it to JSON lines",
}
_TEXTS = (
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"(?i)<(?:!doctype|html|head|body|\?xml)\b", "a web page, not the file itself: download the raw file"),
    (rb"(?s)[\[{\"].?\x00", "UTF-16 text: save it as UTF-8"),
    (rb"\[", "a JSON array: write one row per line, without brackets and commas around them"),
    (rb"\{'", "a Python dict: write rows with json.dumps"),
    (rb"```", "a Markdown code block: remove its fences"),
)
_ROW_KEYS = {
    "messages": "the key of OpenAI's format: name it 'conversations', and move a first message of the role 'system' to"
    " the row's key 'system'",
    "conversation": "misspelt: name it 'conversations'",
    "instruction": "a key of the Alpaca format: write a user and an assistant message",
    "prompt": "a key of a prompt-and-completion format: write a user and an assistant message",
    "text": "a key of plain text: write a user and an assistant message",
}
_ROLE_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant"}


def hint_for_line(line: bytes) -> str:
    """Describe a line that is not JSON, as a clause for the error message."""
    kind = next((kind for magic, kind in _BINARY.items() if line.startswith(magic)), None)
    kind = kind or next((kind for form, kind in _TEXTS if re.match(form, line.lstrip())), None)
    return f"; it looks like {kind}" if kind else ""


def hint_for_json_error(text: str, position: int) -> str:
    """Describe the text at the position where the JSON parser stopped."""
    if hint := hint_for_line(text.encode(errors="replace")):
        return hint
    rest = text[position:].strip()
    if not rest:
        return "; the line ends inside the row: the file is cut short, or a row spans several lines"
    if rest == ",":
        return "; remove the comma between rows"
    if rest[0] == "{" and position:
        return "; write one row per line"
    return "" if rest[0].isascii() else f"; found {name_character(rest[0])}"


def hint_for_row(row: Mapping[str, object]) -> str:
    """Describe the format of a row without conversations."""
    key = next((key for key in _ROW_KEYS if key in row), None)
    return f"; {key!r} is {_ROW_KEYS[key]}" if key else ""


def hint_for_message(message: Mapping[str, object], index: int) -> str:
    """Describe the format of a message without its expected role."""
    role = message.get("role")
    if role is None and "from" in message:
        return "; 'from' and 'value' are keys of the ShareGPT format: write 'role' (user, assistant) and 'content'"
    if role == "system" and index == 0:
        return "; move its content to the row's key 'system'"
    if not isinstance(role, str):
        return ""
    name = _ROLE_NAMES.get(role.lower(), role.lower())
    return f"; write the role {name!r}" if name in ("user", "assistant") and name != role else ""


def hint_for_content(content: object) -> str:
    """Describe content that is not text."""
    is_parts = isinstance(content, list) and content and isinstance(content[0], dict) and "text" in content[0]
    return "; OpenAI's content parts are not read: write their text as one text" if is_parts else ""


def name_character(character: str) -> str:
    """Return a character's code point and name, which shows invisible ones too."""
    if character == "\ufeff":
        return "U+FEFF, a byte order mark: files that were joined keep theirs"
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X} {name}".rstrip()
