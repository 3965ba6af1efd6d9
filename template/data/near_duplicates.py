"""Near duplicates: rows of the evaluation set that the duplicate check merges.

Membership in the evaluation set needs the exact text (`Row.key`). The duplicate check must not: where the set holds a
row in two spellings, a copier could replace each row of another miner by its other spelling and share none with it. So
all near duplicates in the set count as the first of them.

Rows are near duplicates if all their texts are equal after: NFKC normalization (accents, full width, ligatures); case
folding; collapsing white space; removing invisible characters (zero width, text direction, variation selectors,
control characters); unifying quotation marks and dashes; replacing Cyrillic and Greek letters by the Latin ones that
they look like. A last user turn without an answer is ignored, and so is a missing, empty or default system text.

A changed word makes another row. Not covered: look-alikes in other alphabets, digits that resemble letters, rows that
differ only beyond the last token that is read.
"""

import hashlib
import re
import unicodedata

from template.data.chat_templates import model2template
from template.data.rows import Row

# Look-alikes after case folding.
_LOOK_ALIKES = {
    **dict(zip("аеорсухіјѕԁԛԝһӏвкмнт", "aeopcyxijsdqwhlbkmht", strict=True)),
    **dict(zip("αβεζηικμνορτυχ", "abezhikmnoptyx", strict=True)),
    **dict.fromkeys("‘’‚‛′‵`´", "'"),  # noqa: RUF001
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),  # noqa: RUF001
    **{"ı": "i", "ɡ": "g", "ɑ": "a"},  # noqa: RUF001
}
# Invisible, though letters or marks by Unicode's categories.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
# Of the characters that Unicode added after version 14 (Python 3.11), all that a later version decomposes, reorders or
# hides. They are kept as they are, so that validators with different versions of Python merge the same rows.
_ADDED_LATER = re.compile(
    "([\U00010efd-\U00010eff\U00011f41\U00011f42\U00013439-\U0001343f\U0001e030-\U0001e06d\U0001e08f\U0001e4ec-\U0001e4ef]+)"
)
_SPACES = "\t\n\v\f\r\x85"
_CONTROLS = bytes(code for code in (*range(32), 127) if chr(code) not in _SPACES)


class _Glyphs(dict[int, str | int | None]):
    """Lazy table for `str.translate` of look-alikes and invisible characters."""

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        is_selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
        is_hidden = unicodedata.category(character) in ("Cc", "Cf") and character not in _SPACES
        is_invisible = is_hidden or is_selector or code in _BLANK
        self[code] = None if is_invisible else _LOOK_ALIKES.get(character, code)
        return self[code]


_glyphs = _Glyphs()


def normalized_digest(row: Row) -> bytes:
    """Hash the row's normalized texts to 16 bytes, equal for near duplicates only."""
    texts = [message.content for message in row.messages]
    answered = texts[: len(texts) // 2 * 2] or texts
    system = normalize(row.system or "")
    parts = [b"" if system in _DEFAULTS else system, *map(normalize, answered)]
    # Normalized text contains no NUL.
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def normalize(text: str) -> bytes:
    if text.isascii():
        raw = text.encode().translate(None, _CONTROLS).replace(b"`", b"'")
        return b" ".join(raw.lower().split())
    parts = _ADDED_LATER.split(text)
    parts[::2] = map(_fold, parts[::2])
    return " ".join("".join(parts).split()).encode()


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_glyphs)
    return unicodedata.normalize("NFKC", text.casefold()).translate(_glyphs)


_DEFAULTS = frozenset(normalize(template.default_system or "") for template in model2template.values())


class NearDuplicates:
    """A map from the key of each near duplicate to the key of the first added row."""

    def __init__(self) -> None:
        self.canonical: dict[bytes, bytes] = {}
        self._first: dict[bytes, bytes] = {}

    def add(self, row: Row) -> None:
        first = self._first.setdefault(normalized_digest(row), row.key)
        if first != row.key:
            self.canonical[row.key] = first
