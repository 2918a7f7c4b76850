"""What ``ollamalab run`` shows before anything starts: plan, time, models, disk, and who uses the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ollamalab.runner.estimate import Estimate, estimate, total
from ollamalab.runner.progress import spell

if TYPE_CHECKING:
    from ollamalab.runner import Plan
    from ollamalab.runner.inventory import Holding, Room

#: What a notebook leaves in ``results/``, generously.
_RESULT_BYTES = 5e6


def show_plan(plan: Plan, holdings: Sequence[Holding], console: Console) -> None:
    """Print the plan with its time, the models it needs and the disk they take.

    Args:
        plan: What would run.
        holdings: What of its needs is there.
        console: Where to.
    """
    from ollamalab.runner.inventory import known_bytes, room

    sizes = known_bytes(holdings)
    console.print(_tasks(plan, sizes))
    if holdings:
        console.print(_models(holdings))
    for one in room(holdings):
        console.print(_room_line(one), soft_wrap=True)
    written = len(plan.tasks) * _RESULT_BYTES / 1e6
    console.print(
        f"{_plural(len(plan.tasks), 'experiment')}, profile {plan.profile}: {_duration(total(plan, sizes))}; "
        f"results take up to {written:.0f} MB",
        soft_wrap=True,
    )


def show_traffic(signs: Sequence[str], console: Console) -> None:
    """Warn that the host serves already, with what says so; print nothing without a sign."""
    if signs:
        console.print(
            "[yellow]! this host serves already; the run would disturb it, and its figures would be those of "
            "a shared host:[/]",
            soft_wrap=True,
        )
    for sign in signs:
        console.print(f"  {sign}", markup=False, soft_wrap=True)


def _tasks(plan: Plan, sizes: dict[str, float]) -> Table:
    table = _table("Experiment", "Time", "Differs from the defaults in")
    for task in plan.tasks:
        changed = ", ".join(f"{name}={value!r}" for name, value in task.changed.items())
        budget = "" if task.budget_minutes is None else f" of {spell(60 * task.budget_minutes)}"
        table.add_row(task.name, _time(estimate(task, sizes)) + budget, escape(changed) or "–")
    return table


def _models(holdings: Sequence[Holding]) -> Table:
    table = _table("Model", "On", "Size", "Is there")
    for held in holdings:
        there = {True: "yes", False: "no", None: "unknown"}[held.is_there]
        size = "n/a" if held.size_bytes is None else _bytes(held.size_bytes)
        about = "" if held.is_there or held.size_bytes is None else "~"
        note = f"{there}: {held.note}" if held.note else there
        table.add_row(held.need.model, held.need.target, about + size, escape(note))
    return table


def _room_line(one: Room) -> str:
    enough = "" if one.fits else "[red]! not enough room: [/]"
    missing, free = _bytes(one.missing_bytes), _bytes(one.free_bytes)
    return f"{enough}about {missing} of models to come into {escape(str(one.folder))}, {free} free there"


def _time(one: Estimate) -> str:
    """Return a time in a few words; "~" says that nobody measured it."""
    if one.seconds is None:
        return "n/a"
    return spell(one.seconds) if one.basis == "measured" else f"~{spell(one.seconds)}"


def _duration(one: Estimate) -> str:
    if one.seconds is None:
        return "nobody says how long some of it takes with these parameters"
    if one.basis == "measured":
        return f"about {spell(one.seconds)}, as measured on two cores"
    return (
        f"about {spell(one.seconds)}, an estimate from assumed speeds (~), good to a factor of two; "
        "the run itself tells better while it runs"
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, justify="left")
    return table


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
