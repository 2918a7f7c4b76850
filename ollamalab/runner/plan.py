"""What a batch would do: which notebooks, in which order, with which parameters. Starts nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamalab.errors import RunError, SettingsError
from ollamalab.report.notebooks import Header, header_of, read_notebook
from ollamalab.runner.parameters import (
    Parameter,
    check,
    option_value,
    parameters_of,
    read_budget,
    read_option,
    read_values,
)

#: The profile of the default run; its parameter files are optional.
QUICK = "quick"

#: The notebook that collects the others always runs last.
_COLLECTS = "report"

_NAME = re.compile(r"(\d\d)_([a-z0-9_]+)")


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """One experiment.

    Attributes:
        name: "02_cold_start".
        path: Its file.
        header: What it is about.
        parameters: By name, in order.
    """

    name: str
    path: Path
    header: Header
    parameters: dict[str, Parameter]

    @property
    def noun(self) -> str:
        """The name without its number."""
        return self.name.partition("_")[2]

    @property
    def collects(self) -> bool:
        """Whether it shows what the others saved, and therefore runs last."""
        return self.noun == _COLLECTS


@dataclass(frozen=True, kw_only=True)
class Task:
    """One notebook with its parameters.

    Attributes:
        notebook: What to execute.
        changed: Parameters that differ from the notebook's defaults.
        budget_minutes: What its parameter file is made to take at most; None if it does not say.
    """

    notebook: Notebook
    changed: dict[str, Any]
    budget_minutes: float | None = None

    @property
    def name(self) -> str:
        """Name of the notebook."""
        return self.notebook.name

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter as it will be used."""
        defaults = {name: parameter.default for name, parameter in self.notebook.parameters.items()}
        return defaults | self.changed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a batch does.

    Attributes:
        root: The lab's top folder.
        profile: Name of the set of parameter files.
        tasks: In the order of execution.
    """

    root: Path
    profile: str
    tasks: tuple[Task, ...]

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Experiment to its parameters; what makes two runs the same."""
        return {task.name: task.parameters for task in self.tasks}


def discover(root: Path) -> list[Notebook]:
    """Return the lab's experiments by number, ``notebooks/NN_name.ipynb``.

    Raises:
        RunError: There are none, or one is no notebook.
        SettingsError: A ``parameters`` cell cannot be read.
    """
    notebooks = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if _NAME.fullmatch(path.stem):
            content = read_notebook(path)
            notebooks.append(
                Notebook(
                    name=path.stem,
                    path=path,
                    header=header_of(content, path.stem),
                    parameters=parameters_of(content, f"notebooks/{path.name}"),
                )
            )
    if not notebooks:
        raise RunError(f"no notebooks/NN_name.ipynb in {root}; is the checkout complete?")
    return notebooks


def make_plan(
    root: Path, *, names: Sequence[str] = (), profile: str = QUICK, options: Sequence[str] = ()
) -> Plan:
    """Return what a batch would do; everything that can be wrong is found here.

    Args:
        root: The lab's top folder.
        names: Experiments, as "02_cold_start", "cold_start" or "02"; none for all.
        profile: Folder in ``params/``.
        options: ``NAME=VALUE``, for every chosen experiment that has the parameter.

    Raises:
        SettingsError: An unknown experiment, profile or parameter, or a value of the wrong type.
        RunError: The notebooks cannot be read.
    """
    notebooks = discover(root)
    chosen = [_find(name, notebooks) for name in names] if names else notebooks
    ordered = sorted({notebook.name: notebook for notebook in chosen}.values(), key=_place)
    files = _parameter_files(root, profile, notebooks)
    overrides = dict(read_option(option) for option in options)
    for name in overrides:
        if not any(name in notebook.parameters for notebook in ordered):
            check(
                {name: None}, {key: value for one in ordered for key, value in one.parameters.items()}, "-p"
            )
    tasks = []
    for notebook in ordered:
        values, budget_minutes = {}, None
        if path := files.get(notebook.name):
            values = read_values(path, notebook.parameters, str(path.relative_to(root)))
            budget_minutes = read_budget(path)
        given = {
            name: option_value(text, notebook.parameters[name])
            for name, text in overrides.items()
            if name in notebook.parameters
        }
        values |= check(given, notebook.parameters, "-p")
        defaults = notebook.parameters
        changed = {name: value for name, value in values.items() if value != defaults[name].default}
        tasks.append(Task(notebook=notebook, changed=changed, budget_minutes=budget_minutes))
    return Plan(root=root, profile=profile, tasks=tuple(tasks))


def _place(notebook: Notebook) -> tuple[bool, str]:
    return notebook.collects, notebook.name


def _find(name: str, notebooks: Sequence[Notebook]) -> Notebook:
    wanted = Path(name).stem if name.endswith(".ipynb") else name
    number = wanted.zfill(2) if wanted.isdigit() else ""
    for notebook in notebooks:
        if wanted in (notebook.name, notebook.noun) or number == notebook.name[:2]:
            return notebook
    names = [known for notebook in notebooks for known in (notebook.name, notebook.noun)]
    nearest = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`ollamalab list` shows them"
    raise SettingsError(f"no experiment {name!r}; {hint}")


def _parameter_files(root: Path, profile: str, notebooks: Sequence[Notebook]) -> dict[str, Path]:
    """Return experiment to parameter file of a profile; a file for no notebook is an error."""
    folder = root / "params" / profile
    if not folder.is_dir() and profile != QUICK:
        profiles = sorted({QUICK, *(path.name for path in (root / "params").glob("*") if path.is_dir())})
        raise SettingsError(f"no profile {profile!r}; known are {', '.join(profiles)}")
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    known = [notebook.name for notebook in notebooks]
    for name, path in files.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}.yaml?" if nearest else ""
            raise SettingsError(f"{path.relative_to(root)} belongs to no notebook{hint}")
    return files
