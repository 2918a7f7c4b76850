"""What a GGUF file says of itself: metadata and tensor table, read without its weights.

The header holds *fields* (typed keys and values, among them arrays of 50,000 token strings) and
the *tensor table* (name, shape, type, place). ``gguf.GGUFReader`` builds an object per token and
needs about 2 s for SmolLM2; this reader steps over array elements and needs about 20 ms. Formats
and limits: the GGUF specification (``docs/gguf.md`` of ggml); words for types and capabilities:
Ollama's ``fs/ggml/type.go`` and ``server/images.go``.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamalab.embedded.gguf_types import FILE_TYPES, TENSOR_TYPES
from ollamalab.errors import ModelError

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

_MAX_DIMENSIONS = 4

_F32, _STRING, _ARRAY = 6, 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    _F32: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table.

    Attributes:
        name: Such as "blk.0.attn_q.weight".
        type_id: ggml's number of the element type.
        shape: Elements per dimension, the contiguous one first, as GGUF and Ollama write it.
        start: Where its data starts, in bytes from the start of the file.
        size_bytes: Bytes of its data; None for an element type newer than this table.
    """

    name: str
    type_id: int
    shape: tuple[int, ...]
    start: int
    size_bytes: int | None

    @property
    def type(self) -> str:
        """Name of the element type, such as "Q4_1"; "unknown" for a newer one."""
        return TENSOR_TYPES[self.type_id][0] if self.type_id in TENSOR_TYPES else "unknown"

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufMetadata:
    """The header of one model file.

    Attributes:
        fields: Key to value, in file order; an array is a list, or None if arrays were left out.
        tensors: The tensor table, in file order.
        spans: Key to the bytes of its whole entry in the file (key, type and value), start and end.
        data_start: Where tensor data starts, in bytes.
        alignment: Tensor data starts at multiples of this many bytes.
    """

    fields: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    spans: Mapping[str, tuple[int, int]]
    data_start: int
    alignment: int

    @property
    def architecture(self) -> str:
        """``general.architecture``, Ollama's "family"; "unknown" if absent."""
        return str(self.fields.get("general.architecture") or "unknown")

    @property
    def parameter_count(self) -> int:
        """Weights of all tensors together."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def parameter_size(self) -> str:
        """``parameter_count`` as Ollama prints it: "134.52M", "7.6B"."""
        return human_number(self.parameter_count)

    @property
    def quantization_level(self) -> str:
        """Name of ``general.file_type``: "Q4_1", "Q4_K_M"; "unknown" if absent or newer."""
        return FILE_TYPES.get(self._whole("general.file_type", default=-1), "unknown")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for; None if the file does not say."""
        return self._own("context_length")

    @property
    def embedding_length(self) -> int | None:
        """Width of the model and so of its embeddings; None if the file does not say."""
        return self._own("embedding_length")

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template; None for a model without one."""
        return self.fields.get("tokenizer.chat_template") or None

    @property
    def bos_token_id(self) -> int | None:
        """Token that begins a text; None if the file does not say."""
        return self.fields.get("tokenizer.ggml.bos_token_id")

    @property
    def eos_token_id(self) -> int | None:
        """Token that ends a text; None if the file does not say."""
        return self.fields.get("tokenizer.ggml.eos_token_id")

    @property
    def has_tool_template(self) -> bool:
        """Whether the chat template takes tools, by Ollama's test of its text."""
        template = self.chat_template or ""
        return "tools" in template or "tool_call" in template

    @property
    def is_thinking(self) -> bool:
        """Whether the chat template knows a thinking part, by Ollama's test of its text."""
        template = self.chat_template or ""
        if "<think>" in template and "</think>" in template:
            return True
        splits = "content.split('</think>')" in template or 'content.split("</think>")' in template
        return splits and "reasoning_content" not in template and "<SPECIAL_12>" not in template

    @property
    def is_embedding_only(self) -> bool:
        """Whether the model embeds and does not generate: it has a pooling type, or is a BERT."""
        return self._own("pooling_type") is not None or "bert" in self.architecture

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Ollama's capability words, in its order; "completion" unless embedding only.

        Never "insert": that takes a Go template with a place for a suffix, and a GGUF file has none.
        """
        return tuple(
            word
            for word, holds in (
                ("tools", self.has_tool_template),
                ("thinking", self.is_thinking),
                ("embedding" if self.is_embedding_only else "completion", True),
            )
            if holds
        )

    def model_info(self) -> dict[str, Any]:
        """Return ``model_info`` of ``/api/show``, keys sorted as Go sorts them.

        Name and chat template are left out and the parameter count is added, as there; arrays are
        null unless the file was read with them.
        """
        info = {**self.fields, "general.parameter_count": self.parameter_count}
        for key in ("general.name", "tokenizer.chat_template"):
            info.pop(key, None)
        return dict(sorted(info.items()))

    def _whole(self, key: str, *, default: int) -> int:
        value = self.fields.get(key)
        return value if isinstance(value, int) else default

    def _own(self, key: str) -> int | None:
        value = self.fields.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None


def human_number(count: int) -> str:
    """Return a count as Ollama's ``format.HumanNumber`` does: "7B", "7.6B", "134.52M", "12K"."""
    for size, letter, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if count >= size:
            return f"{count // size}{letter}" if count % size == 0 else f"{count / size:.{digits}f}{letter}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


def shortest_f32(value: float) -> float:
    """Return the number of fewest digits that is this one in 32 bits: 1e-05, not 9.999999747378752e-06.

    Go prints 32-bit floats so, and with it Ollama. Nine digits always do.
    """
    pack = _SCALARS[_F32].pack
    for digits in range(1, 9):
        candidate = float(f"{value:.{digits}g}")
        with suppress(OverflowError):  # rounded up past the largest 32-bit float
            if pack(candidate) == pack(value):
                return candidate
    return float(f"{value:.9g}")


def read_gguf(path: Path, *, with_arrays: bool = False) -> GgufMetadata:
    """Return the header of a GGUF file; its weights are not touched.

    Args:
        path: The file.
        with_arrays: Whether arrays are decoded (SmolLM2: 147,000 elements) or given as None.

    Raises:
        ModelError: The file cannot be read, is not GGUF of version 2 or 3, or is cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_gguf(data, with_arrays=with_arrays)
    except OSError as error:
        raise ModelError(
            f"cannot read model file {path}: {error.strerror or error}; check the path and its rights"
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not a usable GGUF file: {error}; copy or fetch it again") from error


def parse_gguf(data: bytes | mmap.mmap, *, with_arrays: bool = False) -> GgufMetadata:
    """Return the header at the start of these bytes, which must be the whole file.

    Raises:
        ValueError: They are not a whole GGUF file; the message says why.
    """
    parser = _Parser(data, with_arrays=with_arrays)
    try:
        return parser.parse()
    except (struct.error, OverflowError) as error:
        raise ValueError(
            f"it is cut off at byte {len(data)}, inside its {parser.part}, or its lengths are wrong"
        ) from error


class _Parser:
    """One pass over a header.

    ``struct`` itself refuses to read past the end, so every read is bounded; ``parse_gguf`` turns
    that into words.
    """

    def __init__(self, data: bytes | mmap.mmap, *, with_arrays: bool) -> None:
        self._data = data
        self._with_arrays = with_arrays
        self._at = 0
        self.part = "header"

    def parse(self) -> GgufMetadata:
        """Return the whole header."""
        tensor_count, field_count = self._opening()
        self.part = "metadata"
        fields: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(field_count):
            start = self._at
            key = self._string()
            if key in fields:
                raise ValueError(f"the field {key!r} appears twice")
            fields[key] = self._value(self._scalar(_U32))
            spans[key] = (start, self._at)
        self.part = "tensor table"
        rows = [self._tensor_row() for _ in range(tensor_count)]
        alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment must be a whole number above 0, got {alignment!r}")
        data_start = -(-self._at // alignment) * alignment
        tensors = tuple(self._tensor(data_start, *row) for row in rows)
        for tensor in tensors:
            end = tensor.start + (tensor.size_bytes or 0)
            if end > len(self._data):
                raise ValueError(
                    f"it is cut off: tensor {tensor.name!r} ends at byte {end}, the file at {len(self._data)}"
                )
        return GgufMetadata(fields, tensors, spans, data_start, alignment)

    def _opening(self) -> tuple[int, int]:
        """Return the number of tensors and of fields."""
        if self._data[:4] != MAGIC:
            raise ValueError(f"it starts with {self._data[:4]!r}, not with {MAGIC!r}")
        self._at = 4
        version = self._scalar(_U32)
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian files" if swapped in (2, 3) else f"version {version}"
            raise ValueError(f"{kind} cannot be read, only little-endian versions 2 and 3")
        return self._scalar(_U64), self._scalar(_U64)

    def _tensor_row(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return name, type, shape and offset of the next tensor."""
        name = self._string()
        dimensions = self._scalar(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions, more than {_MAX_DIMENSIONS}")
        shape = tuple(self._scalar(_U64) for _ in range(dimensions))
        return name, self._scalar(_U32), shape, self._scalar(_U64)

    def _tensor(
        self, data_start: int, name: str, type_id: int, shape: tuple[int, ...], offset: int
    ) -> GgufTensor:
        try:
            size_bytes = tensor_bytes(type_id, shape) if type_id in TENSOR_TYPES else None
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error
        return GgufTensor(name, type_id, shape, data_start + offset, size_bytes)

    def _scalar(self, kind: struct.Struct) -> Any:
        (value,) = kind.unpack_from(self._data, self._at)
        self._at += kind.size
        return value

    def _string(self) -> str:
        length = self._scalar(_U64)
        start, self._at = self._at, self._at + length
        self._require(0)
        return self._data[start : self._at].decode(errors="replace")

    def _value(self, type_id: int) -> Any:
        if type_id in _SCALARS:
            value = self._scalar(_SCALARS[type_id])
            return shortest_f32(value) if type_id == _F32 else value
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array(self._scalar(_U32), self._scalar(_U64))
        raise ValueError(f"a field has the unknown type {type_id}")

    def _array(self, type_id: int, count: int) -> list[Any] | None:
        if type_id in _SCALARS:
            kind = _SCALARS[type_id]
            start = self._at
            self._require(count * kind.size)
            self._at += count * kind.size
            if not self._with_arrays:
                return None
            values = [value for (value,) in kind.iter_unpack(self._data[start : self._at])]
            return [shortest_f32(value) for value in values] if type_id == _F32 else values
        if type_id != _STRING:
            raise ValueError(f"an array has elements of the unusable type {type_id}")
        self._require(count * _U64.size)
        if self._with_arrays:
            return [self._string() for _ in range(count)]
        self._skip_strings(count)
        return None

    def _skip_strings(self, count: int) -> None:
        """Step over strings; the one hot loop, 98,000 rounds for SmolLM2."""
        data, at, length_at = self._data, self._at, _U64.unpack_from
        for _ in range(count):
            at += length_at(data, at)[0] + 8
        self._at = at
        self._require(0)

    def _require(self, size_bytes: int) -> None:
        if self._at + size_bytes > len(self._data):
            raise struct.error


def tensor_bytes(type_id: int, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor of this type and shape takes.

    Raises:
        ValueError: Its rows are not whole blocks of that type.
    """
    kind, block, block_bytes = TENSOR_TYPES[type_id]
    if shape and shape[0] % block:
        raise ValueError(f"rows of {shape[0]} elements are not whole blocks of {kind}")
    return math.prod(shape) // block * block_bytes
