"""What a batch shows while it runs: a line per finished notebook, the current cell, time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ollamalab.report.notebooks import Execution
from ollamalab.runner.estimate import estimate
from ollamalab.runner.plan import Task

#: State of an experiment to its mark, in the order in which states are summed up.
MARKS = {"done": "[green]✓[/]", "failed": "[red]✕[/]", "not run": "–", "waiting": "[yellow]–[/]"}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How the notebooks so far kept to their announced minutes.

    Attributes:
        announced_s: Of those that finished.
        taken_s: By those that finished.
    """

    announced_s: float = 0.0
    taken_s: float = 0.0

    def left_s(self, announced_s: float) -> float:
        """Return seconds to expect for notebooks that announce so many."""
        factor = self.taken_s / self.announced_s if self.announced_s else 1.0
        return announced_s * factor


def announced_s(task: Task) -> float:
    """Return the seconds that a notebook is expected to take; half a minute if nothing tells."""
    expected_s = estimate(task, {}).seconds
    return 30.0 if expected_s is None else expected_s


class BatchView:
    """Shows a batch on a console; without a terminal only the line per finished notebook."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        """Prepare the view of tasks that will run, in order."""
        self._console = console
        self._width = max((len(task.name) for task in tasks), default=0)
        self._waiting = {task.name: announced_s(task) for task in tasks}
        self._total_s = sum(self._waiting.values()) or 1.0
        self._pace = Pace()
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}[/]"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._overall: TaskID | None = None
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing; the finished lines stay."""
        self._progress.stop()

    def begin(self, task: Task) -> None:
        """A notebook starts."""
        if self._current is None:
            self._current = self._progress.add_task("", total=1.0, note="")
            self._overall = self._progress.add_task("all".ljust(self._width), total=self._total_s, note="")
        self._progress.reset(
            self._current, description=task.name.ljust(self._width), note="starting", completed=0
        )
        self._show_overall(task, 0.0)

    def cell(self, task: Task, done: int, total: int, name: str) -> None:
        """A cell starts."""
        if self._current is not None:
            ratio = done / total if total else 1.0
            self._progress.update(self._current, completed=ratio)
            if name:
                self._progress.update(self._current, note=escape(name))
            self._show_overall(task, ratio)

    def end(self, task: Task, state: str, execution: Execution | None) -> None:
        """A notebook ended; its line stays on the console."""
        taken_s = execution.seconds if execution and execution.seconds is not None else 0.0
        self._pace = Pace(
            announced_s=self._pace.announced_s + announced_s(task), taken_s=self._pace.taken_s + taken_s
        )
        self._waiting.pop(task.name, None)
        line = f"{MARKS[state]} {task.name.ljust(self._width)}  {taken_s:5.0f} s"
        if state == "waiting":
            line += "  interrupted"
        elif execution and execution.not_run:
            line += f"  not run: {escape(execution.not_run)}"
        elif execution and execution.failure:
            failure = execution.failure
            line += f"  {escape(failure.cell)}: [red]{escape(failure.error)}[/]"
        self._console.print(line, highlight=False, soft_wrap=True)

    def _show_overall(self, task: Task, ratio: float) -> None:
        if self._overall is not None:
            waiting_s = sum(self._waiting.values()) - ratio * self._waiting.get(task.name, 0.0)
            left = spell(self._pace.left_s(waiting_s))
            self._progress.update(self._overall, completed=self._total_s - waiting_s, note=f"{left} left")


def spell(seconds: float) -> str:
    """Return a duration to expect, in round words: "40 s", "3 min", "1 h 10 min"."""
    if seconds < 55:
        return f"{10 * max(1, round(seconds / 10))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
