"""The manifest of a run: what was measured, with which code, on which machine.

Terms: a *manifest* is ``manifest.json`` in the run's folder; the *schema* is the version of the
folder's format, and a folder from a newer one is refused instead of misread.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ollamalab import gpu, host
from ollamalab.errors import RunError
from ollamalab.files import write_whole
from ollamalab.records import Manifest
from ollamalab.report.entries import SCHEMA
from ollamalab.report.folders import MANIFEST

T = TypeVar("T")

#: Packages whose version can change a number or a figure.
_PACKAGES = (
    "ollamalab",
    "aiohttp",
    "gguf",
    "httpx",
    "ipykernel",
    "matplotlib",
    "msgspec",
    "numpy",
    "nvidia-ml-py",
    "pandas",
    "papermill",
    "psutil",
    "pyarrow",
    "scipy",
    "uvloop",
    "xllamacpp",
)


def utc_now() -> str:
    """Return the wall time as RFC 3339 in UTC, to the second: a label, never a measurement."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def new_manifest(
    run: str,
    *,
    profile: str,
    experiments: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, Any]],
    checkout: Path,
) -> Manifest:
    """Return the manifest of a run that starts now.

    Args:
        run: Name of its folder.
        profile: "quick", "gpu", "cluster" or "interactive".
        experiments: Name to state.
        parameters: Experiment to its parameters.
        checkout: Folder whose commit is noted.
    """
    commit, dirty = commit_of(checkout)
    return Manifest(
        schema=SCHEMA,
        run=run,
        started_utc=utc_now(),
        profile=profile,
        experiments=dict(experiments),
        parameters={name: dict(values) for name, values in parameters.items()},
        commit=commit,
        dirty=dirty,
        packages={"python": platform.python_version(), **_versions(_PACKAGES)},
        machine=_machine(checkout),
        load_average=load_average(),
    )


def load_average() -> tuple[float, float, float] | None:
    """Return the mean number of runnable processes over 1, 5 and 15 minutes; None where unknown."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Save a run's manifest; raises ``RunError`` like ``write_whole``."""
    write_whole(folder / MANIFEST, encode(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Return a run's manifest.

    Raises:
        RunError: It is missing, damaged or from a newer version of ollamalab.
    """
    return decode(folder / MANIFEST, Manifest)


def encode(value: Any) -> bytes:
    """Return readable JSON; a number that is none (NaN) becomes null."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=plain), indent=2) + b"\n"


def plain(value: Any) -> Any:
    """Return a number of numpy as one of Python's; for msgspec, which knows only these.

    Raises:
        TypeError: It is something else that cannot be saved.
    """
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"cannot save a {type(value).__name__}: {value!r}")


def decode(path: Path, kind: type[T]) -> T:
    """Return a saved JSON file as ``kind``; its ``schema`` is looked at first.

    Raises:
        RunError: It is missing, damaged or from a newer version of ollamalab.
    """
    try:
        content = path.read_bytes()
        schema = msgspec.json.decode(content, type=dict[str, Any]).get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise RunError(
                f"{path.parent} was written by a newer ollamalab (format {schema}, this one reads up to "
                f"{SCHEMA}); update ollamalab to read it"
            )
        return msgspec.json.decode(content, type=kind)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; is it a run's folder?") from error
    except msgspec.MsgspecError as error:
        raise RunError(f"{path} is damaged: {error}; run it again, or restore the file") from error


def _machine(checkout: Path) -> dict[str, Any]:
    """Return the host and its GPUs; ``no_gpu`` says why there are none."""
    gpus = gpu.describe_gpus()
    reason = gpus.pop("reason")
    return {**host.describe(checkout), **gpus, "no_gpu": reason}


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit_of(checkout: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether files differ from it; (None, None) outside a checkout of our own."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
