"""Writes what stands before the weights of a GGUF file: counts, fields, tensor table."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ollamalab.embedded.gguf_file import MAGIC, tensor_bytes
from ollamalab.embedded.gguf_types import FILE_TYPES, TENSOR_TYPES

_VERSION = 3
_I32, _STRING, _ARRAY = 5, 8, 9

#: One field's value: text, a truth value, a whole number (u32), a float (f32), or an array of text
#: or of whole numbers (i32).
FieldValue = str | bool | int | float | Sequence[str] | Sequence[int]

#: Element type as a tag says it ("q8_0") to ggml's numbers: of the tensor type, and of the file type.
TYPE_IDS = {name.lower(): type_id for type_id, (name, _, _) in TENSOR_TYPES.items()}
FILE_TYPE_IDS = {name.lower(): file_type for file_type, name in FILE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor to be written.

    Attributes:
        name: Such as "blk.0.attn_q.weight".
        shape: Elements per dimension, the contiguous one first.
        type_id: ggml's number of the element type.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its data; raises ValueError if its rows are not whole blocks of its type."""
        return tensor_bytes(self.type_id, self.shape)


def padding_bytes(size_bytes: int, alignment: int) -> int:
    """Return how many zero bytes follow so many bytes, for the next tensor to be aligned."""
    return -size_bytes % alignment


def field_entry(key: str, value: FieldValue) -> bytes:
    """Return a field as it stands in the file: key, type, value."""
    return _text(key) + _value(value)


def header(entries: Sequence[bytes], rows: Sequence[TensorRow], alignment: int) -> bytes:
    """Return all that comes before the first tensor's data, its padding included.

    Args:
        entries: Fields, from ``field_entry`` or copied from another file.
        rows: Tensors in the order of their data, each padded to the alignment.
        alignment: Tensor data starts at multiples of so many bytes.
    """
    table = bytearray()
    offset = 0
    for row in rows:
        table += _text(row.name) + struct.pack(f"<I{len(row.shape)}Q", len(row.shape), *row.shape)
        table += struct.pack("<IQ", row.type_id, offset)
        offset += row.size_bytes + padding_bytes(row.size_bytes, alignment)
    opening = MAGIC + struct.pack("<IQQ", _VERSION, len(rows), len(entries))
    content = opening + b"".join(entries) + bytes(table)
    return content + bytes(padding_bytes(len(content), alignment))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: FieldValue) -> bytes:
    """Return a field's type and value; the numbers are GGUF's value types."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind = _STRING if value and isinstance(value[0], str) else _I32
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(
        _text(item) if isinstance(item, str) else struct.pack("<i", item) for item in value
    )
