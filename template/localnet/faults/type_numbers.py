"""Other numbers for the types of a runtime's metadata, as after a runtime upgrade.

Source: https://docs.rs/frame-metadata (v14.rs and v15.rs) and https://docs.rs/scale-info, for the layout.
"""

from collections.abc import Callable

from template.localnet.chain.scale_codec import encode_compact

_VERSION_OFFSET, _TYPES_OFFSET = 4, 5
_COMPOSITE, _VARIANT, _SEQUENCE, _ARRAY, _TUPLE, _PRIMITIVE, _COMPACT, _BIT_SEQUENCE = range(8)


def reverse_types(metadata: bytes) -> bytes:
    """Return the same metadata, of version 14 or 15, with its types numbered backwards."""
    copy = _Copy(metadata, _TYPES_OFFSET)
    count = copy.number_of_elements()
    copy.types = count
    ends = []
    for _ in range(count):
        copy.portable_type()
        ends.append(len(copy.output))
    starts = [len(encode_compact(count)), *ends]
    types = [copy.output[start:end] for start, end in zip(starts, ends, strict=False)]
    copy.output = bytearray(encode_compact(count) + b"".join(reversed(types)))
    copy.rest(is_v15=metadata[_VERSION_OFFSET] == 15)
    return metadata[:_TYPES_OFFSET] + bytes(copy.output)


class _Copy:
    """Copies metadata part by part, with other numbers of types."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.output = bytearray()
        self.types = 0
        self._data = data
        self._offset = offset

    def rest(self, *, is_v15: bool) -> None:
        """Copy what follows the types."""
        self.each(lambda: self.pallet(is_v15=is_v15))
        if is_v15:
            self.take(1)
            self.each_of(4, self.type)
        else:
            self.type()
            self.take(1)
        self.each(lambda: self.named(self.type, self.type))
        self.type()
        if is_v15:
            self.each(lambda: self.named(lambda: self.each(self.api_method), self.docs))
            self.each_of(3, self.type)
            self.each(lambda: self.named(self.type, self.text))
        self.take(len(self._data) - self._offset)

    def portable_type(self) -> None:
        self.type()
        self.docs()
        self.each(lambda: self.named(lambda: self.option(self.type)))
        kind = self.take(1)[0]
        if kind == _COMPOSITE:
            self.each(self.field)
        elif kind == _VARIANT:
            self.each(lambda: self.named(lambda: self.each(self.field), lambda: self.take(1), self.docs))
        elif kind == _TUPLE:
            self.each(self.type)
        elif kind == _PRIMITIVE:
            self.take(1)
        else:
            if kind == _ARRAY:
                self.take(4)
            self.each_of(2 if kind == _BIT_SEQUENCE else 1, self.type)
        self.docs()

    def field(self) -> None:
        self.option(self.text)
        self.type()
        self.option(self.text)
        self.docs()

    def pallet(self, *, is_v15: bool) -> None:
        self.text()
        self.option(lambda: self.named(lambda: self.each(self.storage_item)))
        self.each_of(2, lambda: self.option(self.type))
        self.each(lambda: self.named(self.type, self.text, self.docs))
        self.option(self.type)
        self.take(1)
        if is_v15:
            self.docs()

    def storage_item(self) -> None:
        self.text()
        self.take(1)
        if self.take(1)[0]:
            self.text()  # the hashers, a byte each
            self.type()
        self.type()
        self.text()
        self.docs()

    def api_method(self) -> None:
        self.named(lambda: self.each(lambda: self.named(self.type)), self.type, self.docs)

    # The parts of every layout

    def take(self, count: int) -> bytes:
        part = self._data[self._offset : self._offset + count]
        self._offset += count
        self.output += part
        return part

    def number_of_elements(self) -> int:
        size = {0: 1, 1: 2, 2: 4}[self._data[self._offset] & 3]
        return int.from_bytes(self.take(size), "little") >> 2

    def text(self) -> None:
        self.take(self.number_of_elements())

    def type(self) -> None:
        start = len(self.output)
        number = self.number_of_elements()
        self.output[start:] = encode_compact(self.types - 1 - number)

    def docs(self) -> None:
        self.each(self.text)

    def each(self, part: Callable[[], object]) -> None:
        self.each_of(self.number_of_elements(), part)

    def each_of(self, count: int, part: Callable[[], object]) -> None:
        for _ in range(count):
            part()

    def option(self, part: Callable[[], object]) -> None:
        if self.take(1)[0]:
            part()

    def named(self, *parts: Callable[[], object]) -> None:
        """Copy a name, and the parts that follow it."""
        self.text()
        for part in parts:
            part()
