"""A batch: one notebook after the other into one run folder, resumable at any moment.

A state is in the manifest before it is true of the disk ("running") or after it is ("done"), never the
other way round: whatever ends the batch, the folder can be read, and nothing finished is repeated.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from ollamalab.errors import RunError
from ollamalab.records import Manifest
from ollamalab.report import (
    RUN_VARIABLE,
    commit_of,
    load_run,
    new_manifest,
    new_run_folder,
    read_manifest,
    run_folders,
    utc_now,
    write_manifest,
    write_report,
)
from ollamalab.report.notebooks import Execution
from ollamalab.runner.execution import execute
from ollamalab.runner.kernels import Kernel
from ollamalab.runner.plan import Plan, Task
from ollamalab.runner.progress import BatchView

#: States of experiments that a resumed run does not take up again.
OVER = frozenset({"done", "not run"})

#: How long an interrupted cell may take to clean up before its kernel is ended.
_GRACE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """How a batch ended.

    Attributes:
        folder: The run's folder.
        states: Experiment to "done", "failed", "not run" or "waiting".
        report: The HTML report.
        interrupted: Whether Ctrl-C ended it early.
    """

    folder: Path
    states: Mapping[str, str]
    report: Path
    interrupted: bool


def start(plan: Plan, results: Path) -> Path:
    """Make the folder of a new run, with its manifest; return it.

    Raises:
        RunError: It cannot be written.
    """
    folder = new_run_folder(results, datetime.now(UTC))
    manifest = new_manifest(
        folder.name,
        profile=plan.profile,
        experiments={task.name: "waiting" for task in plan.tasks},
        parameters=plan.parameters,
        checkout=plan.root,
    )
    try:
        write_manifest(folder, manifest)
    except RunError:
        folder.rmdir()
        raise
    return folder


def find_unfinished(plan: Plan, results: Path) -> Path:
    """Return the newest unfinished run that did the same: experiments, profile, parameters and code.

    Raises:
        RunError: There is none; a run of another commit is named, because its half and this one's would
            be shown as one.
    """
    commit, _ = commit_of(plan.root)
    other = ""
    for folder in reversed(run_folders(results)):
        try:
            manifest = read_manifest(folder)
        except RunError:
            continue  # damaged or from a newer version: not ours to finish
        same = manifest.profile == plan.profile and manifest.parameters == plan.parameters
        if same and not OVER.issuperset(manifest.experiments.values()):
            if manifest.commit == commit:
                return folder
            other = other or f"{folder.name} is unfinished, but of commit {_short(manifest.commit)}, not of "
    if other:
        raise RunError(f"{other}{_short(commit)}; leave out --resume to measure anew")
    raise RunError(
        f"no unfinished run with these experiments and parameters in {results}; leave out --resume"
    )


def _short(commit: str | None) -> str:
    return commit[:10] if commit else "unknown"


def remaining(plan: Plan, manifest: Manifest) -> list[Task]:
    """Return what is left to do: all that is not over, then the collecting notebook once more."""
    left = [task for task in plan.tasks if manifest.experiments.get(task.name) not in OVER]
    return [task for task in plan.tasks if task in left or (left and task.notebook.collects)]


def run_batch(plan: Plan, folder: Path, console: Console) -> BatchResult:
    """Execute what is left of a run, one notebook after the other, and write its report.

    A failing notebook does not stop the rest. Ctrl-C ends the running cell, which may clean up; a second
    one, or 15 s, ends its kernel.

    Args:
        plan: What to do.
        folder: Of the run, from ``start`` or ``find_unfinished``.
        console: Where progress is shown.

    Raises:
        RunError: The folder cannot be read or written; what is done stays.
    """
    # A resumed run may have had an end before, with failures; now it has none until it ends again.
    manifest = replace(read_manifest(folder), finished_utc=None)
    tasks = remaining(plan, manifest)
    stop = _Stop()
    with stop.on_signals(), BatchView(console, tasks) as view:
        for task in tasks:
            manifest = _note(folder, manifest, task, "running")
            view.begin(task)
            state, execution = _execute(task, folder, view, stop)
            manifest = _note(folder, manifest, task, state)
            view.end(task, state, execution)
            if stop.asked:
                break
    if not stop.asked:
        manifest = replace(manifest, finished_utc=utc_now())
    manifest = replace(manifest, server=_servers(folder))
    write_manifest(folder, manifest)
    return BatchResult(
        folder=folder,
        states=manifest.experiments,
        report=write_report(folder),
        interrupted=stop.asked,
    )


class _Stop:
    """Whether the batch was asked to stop, and the kernel that has to hear of it."""

    def __init__(self) -> None:
        self.asked = False
        self.kernel: Kernel | None = None

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as a wish to stop."""
        before = {name: signal.signal(name, self._hear) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _hear(self, _signal: int, _frame: FrameType | None) -> None:
        kernel = self.kernel
        if kernel is None:
            raise KeyboardInterrupt
        if self.asked:
            kernel.kill()
            return
        self.asked = True
        kernel.interrupt(grace_s=_GRACE_S)


def _execute(task: Task, folder: Path, view: BatchView, stop: _Stop) -> tuple[str, Execution | None]:
    """Execute one notebook; return its state and how it went."""

    def on_cell(done: int, total: int, name: str) -> None:
        # An idle kernel has not heard the signal; the next cell must not begin.
        if stop.asked:
            raise KeyboardInterrupt
        view.cell(task, done, total, name)

    kernel = Kernel({RUN_VARIABLE: str(folder.resolve())}, log=folder / f"{task.name}.log")
    stop.kernel = kernel
    output = folder / f"{task.name}.ipynb"
    try:
        execution = execute(
            task.notebook.path, output, parameters=task.changed, kernel=kernel, on_cell=on_cell
        )
    except KeyboardInterrupt:
        return "waiting", None
    finally:
        stop.kernel = None
    if stop.asked:
        return "waiting", execution
    return ("not run" if execution.not_run else "failed" if execution.failure else "done"), execution


def _note(folder: Path, manifest: Manifest, task: Task, state: str) -> Manifest:
    """Save and return the manifest with a new state."""
    changed = replace(manifest, experiments={**manifest.experiments, task.name: state})
    write_manifest(folder, changed)
    return changed


def _servers(folder: Path) -> dict[str, Any]:
    """Return the servers that the run's experiments measured, by name."""
    servers: dict[str, Any] = {}
    for experiment in load_run(folder).experiments.values():
        servers |= experiment.file.server
    return servers
