"""Where runs are kept: the lab's root, the folder of results, and the names of runs.

A run's folder is named after its start in UTC, ``2026-11-21T034408Z``. Other names in the folder of
results (``reference-...``, ``interactive``) are runs that can be asked for, never "the latest".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from ollamalab.errors import RunError

#: Tells a notebook which folder the batch that executes it writes to.
RUN_VARIABLE = "OLLAMALAB_RUN"

#: Folder for notebooks that are executed by hand; each save replaces the one before.
INTERACTIVE = "interactive"

MANIFEST = "manifest.json"

_RUN_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z(-\d+)?")


def root(start: Path | None = None) -> Path:
    """Return the lab's top folder: the one with ``pyproject.toml`` and ``notebooks/``.

    Searched upward from ``start`` (default: the working folder), then from the installed package,
    which finds a checkout installed with ``pip install -e`` from anywhere.

    Raises:
        RunError: There is none.
    """
    start = (start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parent.parent
    for folder in (start, *start.parents, *package.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise RunError(f"no notebooks/ in {start} or above it; run this inside a clone of ollamalab")


def new_run_folder(results: Path, now: datetime) -> Path:
    """Make and return an empty folder named after ``now`` (UTC); a second one in that second gets "-2".

    Raises:
        RunError: It cannot be made.
    """
    name = f"{now:%Y-%m-%dT%H%M%SZ}"
    try:
        results.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while True:
            folder = results / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                attempt += 1
            else:
                return folder
    except OSError as error:
        raise RunError(
            f"cannot make a folder in {results}: {error.strerror}; choose another with --out"
        ) from error


def run_folders(results: Path) -> list[Path]:
    """Return the folders of batch runs, oldest first; references and interactive work are left out."""
    if not results.is_dir():
        return []
    return sorted(
        folder
        for folder in results.iterdir()
        if _RUN_NAME.fullmatch(folder.name) and (folder / MANIFEST).is_file()
    )


def find_run(name: str, results: Path) -> Path:
    """Return the folder of a run.

    Args:
        name: A path, a name in ``results``, or "" for the latest run.
        results: Folder of results.

    Raises:
        RunError: There is no such run; the message names the nearest one.
    """
    if not name:
        if folders := run_folders(results):
            return folders[-1]
        raise RunError(f"no run in {results}; make one with `ollamalab run`")
    for folder in (results / name, Path(name)):
        if (folder / MANIFEST).is_file():
            return folder
    known = [folder.name for folder in run_folders(results)]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.3) or known[-1:]
    hint = f"did you mean {nearest[0]}?" if nearest else "make one with `ollamalab run`"
    raise RunError(f"no run {name!r} in {results}; {hint}")


def current_folder(environment: Mapping[str, str]) -> Path:
    """Return where a notebook saves: the batch's folder, or ``results/interactive`` by hand."""
    batch = environment.get(RUN_VARIABLE)
    return Path(batch) if batch else root() / "results" / INTERACTIVE


def shown_folder(environment: Mapping[str, str]) -> Path:
    """Return the run that a collecting notebook shows.

    The batch's own folder; by hand the latest run, else the newest reference, else interactive work.

    Raises:
        RunError: Nothing has been saved yet.
    """
    if batch := environment.get(RUN_VARIABLE):
        return Path(batch)
    results = root() / "results"
    references = sorted(path.parent for path in results.glob(f"reference-*/{MANIFEST}"))
    interactive = [results / INTERACTIVE] if (results / INTERACTIVE / MANIFEST).is_file() else []
    if candidates := interactive + references + run_folders(results):
        return candidates[-1]
    return find_run("", results)
