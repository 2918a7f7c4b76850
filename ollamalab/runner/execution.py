"""Executes one notebook with papermill and leaves it in the run's folder, whole, however it went."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from ollamalab.errors import RunError
from ollamalab.files import write_whole
from ollamalab.report.notebooks import Execution, cell_description, execution_of, read_notebook
from ollamalab.runner.kernels import KERNEL_NAME, Kernel

#: Called before each cell: cells done, cells in all, what the cell does ("" if it does not say).
CellListener = Callable[[int, int, str], None]


_NO_WORDS = "its process died without a word; out of memory, or killed, or a crash in native code"


@dataclass
class _Place:
    """Where an execution is."""

    cell: int = 0


def execute(
    notebook: Path,
    output: Path,
    *,
    parameters: Mapping[str, Any],
    kernel: Kernel,
    on_cell: CellListener,
) -> Execution:
    """Execute a notebook in its own folder and save it, also when it failed.

    Args:
        notebook: What to execute; it stays as it is.
        output: The executed notebook; until it is finished it has another, hidden name.
        parameters: Those that differ from the notebook's defaults.
        kernel: Where it runs; its process has ended when this returns.
        on_cell: Told about progress; what it raises ends the execution.

    Returns:
        How long it took and where it failed, read from the executed notebook.

    Raises:
        RunError: The notebook cannot be read or saved.
    """
    partial = output.with_name(f".{output.stem}.running.ipynb")
    source = nbformat.read(notebook, as_version=4)
    place = _Place()

    def tell(cell: Any, cell_index: int) -> None:
        place.cell = cell_index
        on_cell(cell_index, len(source.cells), cell_description(cell))

    failure = ""
    try:
        papermill.execute_notebook(
            source,
            _literal(partial),
            parameters=dict(parameters),
            kernel_name=KERNEL_NAME,
            language="python",
            progress_bar=False,
            cwd=notebook.parent,
            kernel_manager_class=kernel.manager_class,
            on_cell_start=tell,
        )
    except PapermillExecutionError:
        pass  # the failing cell holds the error
    except OSError as error:
        raise RunError(
            f"cannot save {output}: {error.strerror or error}; free some space or choose another --out"
        ) from error
    except Exception as error:
        # No cell holds this error: the kernel did not start, died, or stopped answering.
        failure = kernel.last_words() or _NO_WORDS if isinstance(error, DeadKernelError) else str(error)
    finally:
        kernel.close(keep_log=bool(failure))
        executed = read_notebook(partial) if partial.is_file() else None
        partial.unlink(missing_ok=True)
    if executed is None:
        raise RunError(f"{notebook.name} did not start: {failure or 'no reason given'}")
    if failure:
        _add_error(executed, place.cell, failure)
    write_whole(output, json.dumps(executed, indent=1, ensure_ascii=False).encode() + b"\n")
    return execution_of(executed)


def _add_error(notebook: dict[str, Any], cell: int, message: str) -> None:
    """Give the cell that was running the error that ended the kernel."""
    code_cells = [entry for entry in notebook["cells"][cell:] if entry["cell_type"] == "code"]
    if code_cells:
        output = {"output_type": "error", "ename": "KernelDied", "evalue": message, "traceback": [message]}
        code_cells[0]["outputs"].append(output)


def _literal(path: Path) -> str:
    """Return a path that papermill does not take for a template: it formats braces."""
    return str(path).replace("{", "{{").replace("}", "}}")
