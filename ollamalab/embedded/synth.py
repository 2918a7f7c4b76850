"""Model files with the layers of a large model and random weights: real load, memory and speed, no download.

Such a file is marked in its metadata (``ollamalab.synthetic``, name, description), because what the model
says is noise. The tokenizer is that of another model file, with made-up tokens added until the
vocabulary has the shape's size. No text becomes one of those, and the model says nothing else:
"#49152 #50161 #51170".
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from ollamalab.embedded.gguf_file import DEFAULT_ALIGNMENT, read_gguf
from ollamalab.embedded.gguf_header import (
    FILE_TYPE_IDS,
    TYPE_IDS,
    FieldValue,
    TensorRow,
    field_entry,
    header,
    padding_bytes,
)
from ollamalab.embedded.models import DISK_FULL, ModelFile, ModelStore, ProgressCallback, no_progress
from ollamalab.embedded.random_weights import QUANTS, weights
from ollamalab.embedded.shapes import Shape
from ollamalab.errors import ModelError, SettingsError
from ollamalab.files import partial_name, sweep_partials
from ollamalab.protocol.names import ModelName, parse_name
from ollamalab.protocol.synthetic import SYNTHETIC_FIELD

_TOKENS, _TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_NORMAL_TOKEN = 1
#: An answer says them in turn.
_LEAST_MADE_UP = 4096

_SEED_END = 2**32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a synthetic model is made of; equal recipes and tokenizers give equal files."""

    shape: Shape  #: its layers
    quant: str  #: element type of its matrices, one of ``QUANTS``
    seed: int = 0  #: of its weights

    def __post_init__(self) -> None:
        if self.quant not in QUANTS:
            raise SettingsError(
                f"random weights can be {', '.join(QUANTS)}, not {self.quant!r}; choose one with --quant"
            )
        if not 0 <= self.seed < _SEED_END:
            raise SettingsError(f"--seed must be 0 to {_SEED_END - 1}, got {self.seed}")

    @property
    def name(self) -> ModelName:
        """What the model is called unless it is given a name: "synthetic:7b-q4_0"."""
        return parse_name(f"synthetic:{self.shape.name}-{self.quant}")

    def rows(self) -> list[TensorRow]:
        """Return the tensors with their types: vectors in 32 bits, matrices as ``quant`` says."""
        return [
            TensorRow(name, shape, TYPE_IDS["f32" if len(shape) == 1 else self.quant])
            for name, shape in self.shape.tensors()
        ]

    def fields(self) -> dict[str, FieldValue]:
        """Return the metadata, the tokenizer left out."""
        size = self.shape.name
        return {
            **self.shape.fields(),
            "general.name": f"Synthetic {size}: random weights",
            "general.description": f"Random weights in a {size} shape, made by ollamalab: its text is noise. "
            "Its load times, memory and speed are those of the shape.",
            "general.size_label": size,
            "general.file_type": FILE_TYPE_IDS[self.quant],
            "general.quantization_version": 2,
            SYNTHETIC_FIELD: True,
            "ollamalab.shape": size,
            "ollamalab.seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that was written, and how fast."""

    path: Path  #: where
    size_bytes: int  #: its size
    seconds: float  #: until all of it had reached the disk
    digest: str | None = None  #: SHA-256, 64 hex digits; None if nobody asked for it

    @property
    def bytes_per_s(self) -> float:
        """Speed of writing, with drawing, and hashing if there was any."""
        return self.size_bytes / self.seconds


def synth_model(
    recipe: Recipe,
    store: ModelStore,
    *,
    tokenizer: Path,
    name: ModelName | None = None,
    on_progress: ProgressCallback = no_progress,
) -> tuple[ModelFile, Written]:
    """Write a synthetic model into the store.

    Args:
        recipe: What it is.
        store: Where it goes.
        tokenizer: Model file whose tokenizer it gets.
        name: What it is called; None for the recipe's own name.
        on_progress: Told of bytes written.

    Raises:
        ModelError: The store has a model of this name, or not the room for it; or the tokenizer's
            file is unusable.
        SettingsError: The name has a host or namespace.
    """
    called = name or recipe.name
    target = store.path_of(called)
    _refuse_existing(target, called.short, "--name")
    with store.writing(lambda: on_progress("waiting for another process", 0, 0)) as folder:
        _refuse_existing(target, called.short, "--name")
        file = folder / "model.gguf"
        # The store would read the file again for its digest, which is no faster than the disk.
        written = _write(recipe, file, called.short, tokenizer, on_progress, with_digest=True)
        return store.adopt(file, called, digest=written.digest), written


def write_synthetic(
    recipe: Recipe, target: Path, *, tokenizer: Path, on_progress: ProgressCallback = no_progress
) -> Written:
    """Write a synthetic model as a file anywhere, such as for ``ollama create``.

    Args:
        recipe: What it is.
        target: The file; it appears when it is whole.
        tokenizer: Model file whose tokenizer it gets.
        on_progress: Told of bytes written.

    Raises:
        ModelError: The file exists, its folder does not, or the disk has no room for it; or the
            tokenizer's file is unusable.
    """
    _refuse_existing(target, str(target), "--out")
    sweep_partials(target.parent)
    partial = partial_name(target)
    with _mapped_errors(target):
        try:
            written = _write(recipe, partial, str(target), tokenizer, on_progress)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    return replace(written, path=target)


def _write(
    recipe: Recipe,
    path: Path,
    called: str,
    tokenizer: Path,
    on_progress: ProgressCallback,
    *,
    with_digest: bool = False,
) -> Written:
    """Write a new file, to the disk itself; OSErrors are the caller's."""
    rows = recipe.rows()
    fields, made_up = _tokenizer_fields(tokenizer, recipe.shape.vocabulary)
    entries = [field_entry(key, value) for key, value in (recipe.fields() | fields).items()]
    opening = header(entries, rows, DEFAULT_ALIGNMENT)
    size_bytes = len(opening) + sum(
        row.size_bytes + padding_bytes(row.size_bytes, DEFAULT_ALIGNMENT) for row in rows
    )
    _require_room(path.parent, called, size_bytes)
    begun_s = time.perf_counter()

    def chunks() -> Iterator[memoryview]:
        done_bytes = 0
        drawn = weights(rows, recipe.seed, DEFAULT_ALIGNMENT, made_up=made_up)
        for chunk in chain([memoryview(opening)], drawn):
            yield chunk
            done_bytes += len(chunk)
            on_progress("writing", done_bytes, size_bytes)

    digest = hashlib.sha256() if with_digest else None
    with path.open("xb") as file, _hashing(digest) as hash_soon:
        fcntl.flock(file, fcntl.LOCK_EX)  # says that its writer lives; see ``sweep_partials``
        for chunk in chunks():
            hash_soon(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(
        path=path,
        size_bytes=size_bytes,
        seconds=time.perf_counter() - begun_s,
        digest=None if digest is None else digest.hexdigest(),
    )


@contextmanager
def _hashing(digest: hashlib._Hash | None) -> Iterator[Callable[[memoryview], object]]:
    """Give a function that hashes chunks beside the writing; at the end of the block all are hashed.

    It may lag behind: the chunks are views of pools and take no memory.
    """
    if digest is None:
        yield lambda _: None
        return
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as hasher:
        try:
            yield lambda chunk: hasher.submit(digest.update, chunk)
        except BaseException:
            hasher.shutdown(cancel_futures=True)
            raise


def _tokenizer_fields(tokenizer: Path, size: int) -> tuple[dict[str, FieldValue], int]:
    """Return the tokenizer of a file with more tokens, and how many; no merge makes them.

    They are words as others, not padding, because the model says nothing else.
    """
    source = read_gguf(tokenizer, with_arrays=True).fields
    fields = {key: value for key, value in source.items() if key.startswith("tokenizer.")}
    tokens, types = fields.get(_TOKENS) or [], fields.get(_TOKEN_TYPES) or []
    made_up = range(len(tokens), size)
    if not tokens or len(types) != len(tokens) or len(made_up) < _LEAST_MADE_UP:
        raise ModelError(
            f"{tokenizer} has a vocabulary of {len(tokens)} tokens; the tokenizer of this synthetic model "
            f"needs 1 to {size - _LEAST_MADE_UP}"
        )
    fields[_TOKENS] = [*tokens, *(f"Ġ#{number}" for number in made_up)]
    fields[_TOKEN_TYPES] = [*types, *(_NORMAL_TOKEN for _ in made_up)]
    return fields, len(made_up)


def _refuse_existing(path: Path, called: str, option: str) -> None:
    if path.exists():
        raise ModelError(f"{called} exists already ({path}); delete that file, or choose another {option}")


def _require_room(folder: Path, called: str, size_bytes: int) -> None:
    """Refuse before the first byte what cannot end well."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise ModelError(
            f"{called} needs {size_bytes} bytes and {folder} has {free_bytes} free; free some space, "
            "or choose another disk (--out FILE, or XDG_CACHE_HOME)"
        )


@contextmanager
def _mapped_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        step = "free some space there" if error.errno in DISK_FULL else "check its folder and rights"
        raise ModelError(f"cannot write {target}: {error.strerror or error}; {step}") from error
