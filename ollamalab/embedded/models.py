"""The model store: which model files there are, and what they are called.

Files live in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``, then ``ollamalab/models``) as
``<model>/<tag>.gguf``: ``smollm2/135m.gguf`` is ``smollm2:135m``, and a file put there by hand is
a model too. Files anywhere else can be added by path; such a file is called by its own name:
``My-Model.gguf`` is ``my-model:latest``. Names follow Ollama's rules (case, ``library/``, registry
host). ``smollm2`` alone means the model that ``fetch`` brings, ``smollm2:135m``, unless there is a
``smollm2:latest``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from ollamalab.embedded.gguf_file import GgufMetadata, read_gguf
from ollamalab.errors import ModelError, ModelNotFound, SettingsError
from ollamalab.protocol.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName, parse_name
from ollamalab.protocol.synthetic import SYNTHETIC_FIELD

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2:135m"

#: What stands for another model as long as there is no model of that very name.
ALIASES = {"smollm2:latest": DEFAULT_MODEL}

#: Key of the metadata note in derived files: what they were made from.
DERIVED_FROM = "ollamalab.derived_from"

#: Reports a long step: what it does, bytes done, bytes in all.
ProgressCallback = Callable[[str, int, int], None]

#: Error numbers of a full disk; EFBIG is what a limit on file sizes (``ulimit -f``) gives instead.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_SUFFIX = ".gguf"
_HASH_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One model that can be loaded.

    Attributes:
        name: Its name; ``name.short`` is how lists show it.
        path: Its GGUF file.
        digest: SHA-256 of the file, 64 hex digits.
        size_bytes: Size of the file.
        modified_ns: When the file was last changed, nanoseconds since 1970.
        metadata: Its header, arrays left out.
    """

    name: ModelName
    path: Path
    digest: str
    size_bytes: int
    modified_ns: int
    metadata: GgufMetadata

    @property
    def derived_from(self) -> str | None:
        """What a derived file was made from; None for an original."""
        return self.metadata.fields.get(DERIVED_FROM)

    @property
    def is_synthetic(self) -> bool:
        """Whether its weights are random: its text is noise."""
        return self.metadata.fields.get(SYNTHETIC_FIELD) is True

    def model_info(self, *, verbose: bool = False) -> dict[str, Any]:
        """Return ``model_info`` of ``/api/show``; with ``verbose`` the file is read again for its arrays.

        Raises:
            ModelError: The file went away or was damaged since it was found.
        """
        return (read_gguf(self.path, with_arrays=True) if verbose else self.metadata).model_info()


class ModelStore:
    """Model files by name. What it has read of an unchanged file it does not read again."""

    def __init__(self, folder: Path | None = None, extra: Sequence[Path] = ()) -> None:
        """Take a folder and single files.

        Args:
            folder: Where the store is; None for the user's cache. It need not exist yet.
            extra: Model files elsewhere (``--model PATH``); they win over the folder's.

        Raises:
            ModelError: An extra file is missing or no usable GGUF file.
            SettingsError: Two extra files would have the same name.
        """
        self.folder = folder or platformdirs.user_cache_path("ollamalab") / "models"
        self._read: dict[Path, ModelFile] = {}
        self._found: dict[str, ModelFile] = {}
        self._extra: dict[str, tuple[ModelName, Path]] = {}
        for path in extra:
            name = name_of_file(path)
            if name.key in self._extra:
                raise SettingsError(
                    f"{path} and {self._extra[name.key][1]} would both be {name.short}; rename one of them"
                )
            read_gguf(path)
            self._extra[name.key] = (name, path.resolve())

    def names(self) -> list[ModelName]:
        """Return the name of every model file, sorted, whether or not the file is usable."""
        return sorted((name for name, _ in self._paths().values()), key=lambda name: name.key)

    def list(self) -> list[ModelFile]:
        """Return every usable model, the one changed last first, as ``/api/tags`` lists them."""
        models = []
        for name, path in self._paths().values():
            try:
                models.append(self._open(name, path))
            except ModelError as error:
                logger.warning("event=model_left_out name=%s reason=%s", name.short, error)
        return sorted(models, key=lambda model: (-model.modified_ns, model.name.key))

    def find(self, name: str | ModelName) -> ModelFile:
        """Return the model of this name, in any spelling that Ollama accepts.

        The first look at a file hashes it (a second per GB or so); the digest is kept on disk.

        Raises:
            ModelNotFound: No file has this name.
            ModelError: Its file is not a usable GGUF file.
            SettingsError: The text is not a model name.
        """
        wanted = parse_name(name) if isinstance(name, str) else name
        paths = self._paths()
        found = paths.get(wanted.key) or paths.get(resolve_alias(wanted).key)
        if found is None:
            there = ", ".join(known.short for known in self.names()) or "none"
            raise ModelNotFound(
                f"model '{wanted.short}' not found (there are: {there}); "
                f"`ollamalab models fetch` brings {DEFAULT_MODEL}, `models synth` writes large shapes, "
                "`--model PATH` adds a GGUF file"
            )
        model = self._open(*found)
        if model.name.key == wanted.key:  # an alias gives way as soon as there is a model of its name
            self._found[wanted.key] = model
        return model

    def recall(self, name: ModelName) -> ModelFile | None:
        """Return a model that was found by this very name before and whose file is unchanged.

        It costs no more than a look at the file's status. None says nothing: ``find`` may know the name.
        """
        known = self._found.get(name.key)
        with suppress(OSError):
            if known and _is_unchanged(known, known.path.stat()):
                return known
        return None

    def path_of(self, name: ModelName) -> Path:
        """Return where the store keeps a model of this name.

        Raises:
            SettingsError: The name has a registry host or namespace; the store has none.
        """
        if (name.host.lower(), name.namespace.lower()) != (DEFAULT_HOST, DEFAULT_NAMESPACE):
            raise SettingsError(
                f"{name.short} has a host or namespace; write model:tag, for example my-model:7b"
            )
        return self.folder / name.model.lower() / f"{name.tag.lower()}{_SUFFIX}"

    @contextmanager
    def writing(self, on_wait: Callable[[], None] | None = None) -> Iterator[Path]:
        """Hold the store for writing and give an empty folder on the same disk.

        One writer at a time, over all processes; the lock goes with the process, also after
        kill -9, and the next writer removes what it left. Nothing in that folder is ever taken for
        a model: ``adopt`` moves a finished file out of it.

        Args:
            on_wait: Called once if another process is writing, before waiting for it.

        Raises:
            ModelError: The disk is full, or the store cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("w") as lock:
                _lock(lock.fileno(), on_wait)
                for leftover in self.folder.glob(".partial-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                with tempfile.TemporaryDirectory(
                    prefix=".partial-", dir=self.folder, ignore_cleanup_errors=True
                ) as partial:
                    yield Path(partial)
        except OSError as error:
            raise ModelError(_cannot_write(self.folder, error)) from error

    def adopt(self, file: Path, name: ModelName, *, digest: str | None = None) -> ModelFile:
        """Move a finished file from the ``writing`` folder to its place, in one step.

        Args:
            file: The file; its bytes reach the disk before its name does.
            name: What it is called from now on.
            digest: Its SHA-256 if that is known already.

        Raises:
            ModelError: It is not a usable GGUF file.
            OSError: It cannot be moved; ``writing`` turns that into a ModelError.
        """
        read_gguf(file)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)
        if digest is not None:
            self._keep_digest(path, path.stat(), digest)
        return self._open(parse_name(f"{path.parent.name}:{path.stem}"), path)

    def _paths(self) -> dict[str, tuple[ModelName, Path]]:
        """Return name and path of every model file by the key of its name."""
        found = {}
        for path in sorted(self.folder.glob(f"*/*{_SUFFIX}")):
            with suppress(SettingsError):  # a folder that is no model name holds no model
                name = parse_name(f"{path.parent.name}:{path.stem}")
                found[name.key] = (name, path)
        return found | self._extra

    def _open(self, name: ModelName, path: Path) -> ModelFile:
        try:
            status = path.stat()
        except OSError as error:
            raise ModelError(f"cannot read model file {path}: {error.strerror}; check the path") from error
        known = self._read.get(path)
        if known and _is_unchanged(known, status):
            return known
        metadata = read_gguf(path)
        model = ModelFile(
            name=name,
            path=path,
            digest=self._digest(path, status),
            size_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            metadata=metadata,
        )
        self._read[path] = model
        return model

    def _digest(self, path: Path, status: os.stat_result) -> str:
        """Return the file's SHA-256, from the last time if size, time and inode are unchanged."""
        with suppress(OSError, ValueError):
            kept = json.loads(self._digest_note(path).read_text())
            if isinstance(kept, dict) and kept.get("file") == _identity(path, status):
                return str(kept["sha256"])
        digest = sha256_of(path)
        self._keep_digest(path, status, digest)
        return digest

    def _keep_digest(self, path: Path, status: os.stat_result, digest: str) -> None:
        note = self._digest_note(path)
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as draft:
                json.dump({"file": _identity(path, status), "sha256": digest}, draft)
            Path(draft.name).replace(note)
        except OSError as error:
            logger.info("event=digest_not_kept path=%s reason=%s", path, error)

    def _digest_note(self, path: Path) -> Path:
        return self.folder / ".digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def no_progress(step: str, done_bytes: int, total_bytes: int) -> None:
    """Report nothing."""


def resolve_alias(name: ModelName) -> ModelName:
    """Return the model that a bare ``smollm2`` stands for; any other name as it is."""
    alias = ALIASES.get(name.short.lower())
    return parse_name(alias) if alias else name


def name_of_file(path: Path) -> ModelName:
    """Return the name of a model file given by path: its stem in lower case, tag ``latest``.

    What a model name may not contain becomes "-": ``My Model.Q8_0.gguf`` is ``my-model.q8_0:latest``.
    """
    stem = path.name.lower().removesuffix(_SUFFIX)
    model = re.sub(r"[^a-z0-9_.-]", "-", stem).lstrip("-.")[:80] or "model"
    return ModelName(DEFAULT_HOST, DEFAULT_NAMESPACE, model, DEFAULT_TAG)


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return a file's SHA-256 as 64 hex digits.

    Args:
        path: The file.
        on_bytes: Told the bytes hashed so far.

    Raises:
        ModelError: The file cannot be read.
    """
    digest = hashlib.sha256()
    done_bytes = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
                done_bytes += len(chunk)
                if on_bytes:
                    on_bytes(done_bytes)
    except OSError as error:
        raise ModelError(f"cannot read model file {path}: {error.strerror}; check its rights") from error
    return digest.hexdigest()


def _is_unchanged(known: ModelFile, status: os.stat_result) -> bool:
    return (known.size_bytes, known.modified_ns) == (status.st_size, status.st_mtime_ns)


def _identity(path: Path, status: os.stat_result) -> list[Any]:
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ino]


def _lock(descriptor: int, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait:
            on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _cannot_write(folder: Path, error: OSError) -> str:
    step = "free some space there" if error.errno in DISK_FULL else "check the rights of that folder"
    return (
        f"cannot write to {folder}: {error.strerror or error}; {step}, or set XDG_CACHE_HOME to another disk"
    )
