"""Variants of a model file: other element types, other metadata, same model.

Weights are decoded to 32-bit floats and encoded anew with the ``gguf`` package, so nothing that the
source had lost comes back: an f16 made from Q4_1 answers like the Q4_1, and what can be said of a
variant's quality is its agreement with the source, never more. Whatever is not changed on purpose
is copied byte for byte, so equal input gives an equal file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from ollamalab.embedded.gguf_file import GgufMetadata, GgufTensor, read_gguf, tensor_bytes
from ollamalab.embedded.gguf_header import (
    FILE_TYPE_IDS,
    TYPE_IDS,
    FieldValue,
    TensorRow,
    field_entry,
    header,
    padding_bytes,
)
from ollamalab.embedded.models import DERIVED_FROM, ModelFile, ModelStore, ProgressCallback, no_progress
from ollamalab.errors import ModelError, SettingsError
from ollamalab.protocol.names import ModelName

#: What a model can be made into, as the tag says it.
VARIANTS = ("q8_0", "q4_0", "f16")

#: Tensors that stay at 8 bits in a 4-bit file, as llama.cpp's own quantiser keeps them: they touch
#: every token, and the output suffers most from them.
_EIGHT_BIT_AT_LEAST = ("token_embd.weight", "output.weight")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of one tensor."""

    tensor: GgufTensor
    type_id: int
    size_bytes: int


def derive_model(
    name: str, store: ModelStore, to: str, *, on_progress: ProgressCallback = no_progress
) -> ModelFile:
    """Return a variant of a model with other element types, writing it if it is not there yet.

    ``smollm2:135m`` made ``q8_0`` is ``smollm2:135m-q8_0``; a note in its metadata
    (``ollamalab.derived_from``) names the source and its digest.

    Args:
        name: The source.
        store: Where the source is and the variant goes.
        to: One of ``VARIANTS``.
        on_progress: Told of bytes written.

    Raises:
        ModelNotFound: There is no such source.
        ModelError: The source is damaged, or the disk is full.
        SettingsError: ``to`` is not a variant, or the source has nothing to convert.
    """
    if to not in VARIANTS:
        raise SettingsError(f"a model can be made {', '.join(VARIANTS)}, not {to!r}")
    source = store.find(name)
    target = replace(source.name, tag=f"{source.name.tag}-{to}")
    note = f"{source.name.short} {source.metadata.quantization_level} sha256:{source.digest}"
    if found := _find_derived(target, note, store):
        return found
    with store.writing(lambda: on_progress("waiting for another process", 0, 0)) as folder:
        if found := _find_derived(target, note, store):
            return found
        file = folder / "model.gguf"
        write_variant(source.path, file, to=to, fields={DERIVED_FROM: note}, on_progress=on_progress)
        return store.adopt(file, target)


def write_variant(
    source: Path,
    target: Path,
    *,
    to: str | None = None,
    fields: Mapping[str, FieldValue] | None = None,
    on_progress: ProgressCallback = no_progress,
) -> None:
    """Write a copy of a model file with other element types, other metadata, or both.

    Args:
        source: The file to copy.
        target: The file to write; an existing one is replaced.
        to: Element type of the matrices ("q8_0"); None keeps every tensor as it is. Tensors that
            the source holds in 32 bits (norms, routers) stay so.
        fields: Metadata to replace or add, such as ``tokenizer.chat_template``.
        on_progress: Told of bytes written.

    Raises:
        ModelError: The source is not a usable GGUF file.
        SettingsError: The source has nothing that could be made ``to``, or a type that the ``gguf``
            package cannot decode.
        OSError: The target cannot be written.
    """
    metadata = read_gguf(source)
    plans = [_plan(tensor, to) for tensor in metadata.tensors]
    changed = dict(fields or {})
    if to is not None:
        if all(plan.type_id == plan.tensor.type_id for plan in plans):
            raise SettingsError(f"nothing in {source} ({metadata.quantization_level}) can be made {to}")
        changed["general.file_type"] = FILE_TYPE_IDS[to]
    data = np.memmap(source, dtype=np.uint8, mode="r")
    total_bytes = sum(plan.size_bytes for plan in plans)
    done_bytes = 0
    with target.open("wb") as file:
        file.write(_header(metadata, data, plans, changed))
        for plan in plans:
            file.write(_encode(data, plan))
            file.write(bytes(padding_bytes(plan.size_bytes, metadata.alignment)))
            done_bytes += plan.size_bytes
            on_progress("converting", done_bytes, total_bytes)


def _find_derived(name: ModelName, note: str, store: ModelStore) -> ModelFile | None:
    """Return the variant if the store has it and made it from this very source."""
    try:
        found = store.find(name)
    except ModelError:
        return None
    return found if found.derived_from == note else None


def _plan(tensor: GgufTensor, to: str | None) -> _Plan:
    """Return the type and size that a tensor gets.

    Raises:
        SettingsError: The tensor's own type is unknown here.
    """
    if tensor.size_bytes is None:
        raise SettingsError(f"tensor {tensor.name!r} has element type {tensor.type_id}, unknown here")
    if to is not None and len(tensor.shape) > 1 and tensor.type != "F32":
        wanted = "q8_0" if to == "q4_0" and tensor.name in _EIGHT_BIT_AT_LEAST else to
        type_id = TYPE_IDS[wanted]
        with suppress(ValueError):  # rows that are no whole number of blocks stay as they are
            return _Plan(tensor, type_id, tensor_bytes(type_id, tensor.shape))
    return _Plan(tensor, tensor.type_id, tensor.size_bytes)


def _header(
    metadata: GgufMetadata,
    data: npt.NDArray[np.uint8],
    plans: list[_Plan],
    changed: Mapping[str, FieldValue],
) -> bytes:
    """Return everything before the first tensor's data: the source's fields, changed, and the new table."""
    entries = {key: data[start:end].tobytes() for key, (start, end) in metadata.spans.items()}
    entries |= {key: field_entry(key, value) for key, value in changed.items()}
    rows = [TensorRow(plan.tensor.name, plan.tensor.shape, plan.type_id) for plan in plans]
    return header(list(entries.values()), rows, metadata.alignment)


def _encode(data: npt.NDArray[np.uint8], plan: _Plan) -> bytes:
    """Return a tensor's bytes in its planned type."""
    tensor = plan.tensor
    raw = data[tensor.start : tensor.start + (tensor.size_bytes or 0)]
    if plan.type_id == tensor.type_id:
        return raw.tobytes()
    rows = raw.reshape(*reversed(tensor.shape[1:]), -1)
    try:
        weights = quants.dequantize(rows, GGMLQuantizationType(tensor.type_id))
        encoded: npt.NDArray[np.generic] = quants.quantize(weights, GGMLQuantizationType(plan.type_id))
    except NotImplementedError as error:
        raise SettingsError(f"tensor {tensor.name!r} ({tensor.type}) cannot be converted: {error}") from error
    return encoded.tobytes()
