"""What a notebook says of itself: title, question, minutes, hardware; and of its last execution.

The author writes the facts into the notebook's metadata::

    "ollamalab": {"question": "How long ...?", "minutes": 0.7, "hardware": "any",
                  "estimate_s": "10 + 2 * pairs * (load_s + request_s)"}

Read as JSON: a listing should not need Jupyter's libraries.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamalab.errors import NotRun, RunError

_DESCRIPTION = "papermill_description="
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a notebook is about.

    Attributes:
        title: Its first heading.
        question: What it asks, one sentence.
        minutes: How long its default run takes on two cores; None if not told.
        hardware: "any", or what it needs to be worth running.
        estimate_s: How its seconds depend on its parameters, see ``runner.estimate``; "" if not told.
    """

    title: str
    question: str
    minutes: float | None
    hardware: str
    estimate_s: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Where and how an execution ended.

    Attributes:
        cell: Number and name of the failing cell.
        kind: Name of the exception.
        message: What it says, in one line; may be "".
    """

    cell: str
    kind: str
    message: str

    @property
    def error(self) -> str:
        """Kind and message, in one line."""
        return f"{self.kind}: {self.message}" if self.message else self.kind


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a notebook's execution went.

    Attributes:
        seconds: How long it took; None if it was cut off.
        failure: Where it failed; None if it ran through.
        not_run: Why it has nothing to measure on its target, if that ended it; None if it did not.
    """

    seconds: float | None
    failure: Failure | None
    not_run: str | None = None


def read_notebook(path: Path) -> dict[str, Any]:
    """Return a notebook's JSON.

    Raises:
        RunError: The file cannot be read or is no notebook.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"], notebook["metadata"]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a notebook ({error}); restore it, e.g. with git") from error
    return dict(notebook)


def source_of(cell: dict[str, Any]) -> str:
    """Return a cell's text, which the file keeps as one string or as lines."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def header_of(notebook: dict[str, Any], name: str) -> Header:
    """Return what a notebook is about; ``name`` is its title if it has no heading."""
    about = notebook["metadata"].get("ollamalab", {})
    lines = (line for cell in notebook["cells"] for line in source_of(cell).splitlines())
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), name)
    minutes = about.get("minutes")
    return Header(
        title=title,
        question=str(about.get("question", "")),
        minutes=float(minutes) if isinstance(minutes, int | float) else None,
        hardware=str(about.get("hardware", "any")),
        estimate_s=str(about.get("estimate_s", "")),
    )


def cell_description(cell: dict[str, Any]) -> str:
    """Return what a cell's ``# papermill_description=`` says it does; "" if it has none."""
    for line in source_of(cell).splitlines():
        if line.lstrip().startswith("#") and _DESCRIPTION in line:
            return line.partition(_DESCRIPTION)[2].strip().replace("_", " ")
    return ""


def cell_name(cell: dict[str, Any]) -> str:
    """Return a short name of a code cell: its description, else its first line of code."""
    lines = (line.strip() for line in source_of(cell).splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "empty")
    return cell_description(cell) or (first if len(first) <= 40 else f"{first[:39]}…")


def execution_of(notebook: dict[str, Any]) -> Execution:
    """Return how the execution that left this notebook went, from papermill's notes and the outputs."""
    notes = notebook["metadata"].get("papermill", {})
    seconds, failure = notes.get("duration"), _failure(notebook)
    if failure is not None and failure.kind == NotRun.__name__:
        return Execution(seconds=seconds, failure=None, not_run=failure.message)
    return Execution(seconds=seconds, failure=failure)


def _failure(notebook: dict[str, Any]) -> Failure | None:
    code_cells = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
    for number, cell in enumerate(code_cells, start=1):
        if "raises-exception" in cell.get("metadata", {}).get("tags", []):
            continue
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                message = _ESCAPES.sub("", str(output.get("evalue", "")))
                message = " ".join(message.split())
                return Failure(
                    cell=f"code cell {number} ({cell_name(cell)})",
                    kind=str(output.get("ename", "error")),
                    message=message,
                )
    return None
