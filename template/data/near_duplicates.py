"""Which rows look alike: what the duplicate check takes for one row, though the pool holds it twice.

Two questions need two answers. Whether a row is of the pool is a matter of its exact texts, `Row.key`: whoever changes
a letter has another row, which is refused. Whether a dataset is a copy is not: where the owner's pool itself holds a
row in two spellings, a copier could give each row of another miner in its other spelling and share none with it. So in
that check all rows of the pool that look alike count as the first of them. No row that is not of the pool gets there.

Rows look alike when all their texts do, after: Unicode's compatibility form (NFKC), which joins accents and undoes full
width and ligatures; upper and lower case; white space of any kind and amount; what does not print (zero width, text
direction, variation selectors, control characters); quotation marks and dashes; letters of the Cyrillic and the Greek
alphabet that are drawn like Latin ones. A last question without an answer is not used, and no system text, an empty one
and a template's default one are alike, for a model reads them alike, or nearly.

A word changed is another row, however slight the change. Signs of other alphabets that resemble these, digits that
resemble letters, and rows that differ only behind the last token that is read, are not looked for.
"""

import hashlib
import unicodedata

from template.data.chat_templates import model2template
from template.data.rows import Row

# By the letter they are drawn like, in small or in capital form, after case is gone.
_DRAWN_ALIKE = {
    **dict(zip("аеорсухіјѕԁԛԝһӏвкмнт", "aeopcyxijsdqwhlbkmht", strict=True)),
    **dict(zip("αβεζηικμνορτυχ", "abezhikmnoptyx", strict=True)),
    **dict.fromkeys("‘’‚‛′‵`´", "'"),  # noqa: RUF001
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),  # noqa: RUF001
    **{"ı": "i", "ɡ": "g", "ɑ": "a"},  # noqa: RUF001
}
# Letters and marks by Unicode's categories, yet nothing of them is drawn.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_SPACES = "\t\n\v\f\r\x85"
_CONTROLS = bytes(code for code in (*range(32), 127) if chr(code) not in _SPACES)


class _Drawn(dict[int, str | int | None]):
    """For `str.translate`: what a character is drawn like, None where nothing is drawn."""

    def __missing__(self, code: int) -> str | int | None:
        one = chr(code)
        is_selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
        is_hidden = unicodedata.category(one) in ("Cc", "Cf") and one not in _SPACES
        self[code] = None if is_hidden or is_selector or code in _BLANK else _DRAWN_ALIKE.get(one, code)
        return self[code]


_drawn = _Drawn()


def normalized_digest(row: Row) -> bytes:
    """16 bytes that rows have in common exactly when they look alike."""
    texts = [message.content for message in row.messages]
    answered = texts[: len(texts) // 2 * 2] or texts
    system = _fold(row.system or "")
    parts = [b"" if system in _DEFAULTS else system, *map(_fold, answered)]
    # No folded text has a NUL in it.
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def _fold(text: str) -> bytes:
    if text.isascii():
        raw = text.encode().translate(None, _CONTROLS).replace(b"`", b"'")
        return b" ".join(raw.lower().split())
    text = unicodedata.normalize("NFKC", text).translate(_drawn)
    text = unicodedata.normalize("NFKC", text.casefold()).translate(_drawn)
    return " ".join(text.split()).encode()


_DEFAULTS = frozenset(_fold(template.default_system or "") for template in model2template.values())


class NearDuplicates:
    """Near duplicates among the rows added so far.

    `canonical` maps the key of each near duplicate to the key of the first row with the same
    normalized text.
    """

    def __init__(self) -> None:
        self.canonical: dict[bytes, bytes] = {}
        self._first: dict[bytes, bytes] = {}

    def add(self, row: Row) -> None:
        """The next row of the pool."""
        first = self._first.setdefault(normalized_digest(row), row.key)
        if first != row.key:
            self.canonical[row.key] = first
