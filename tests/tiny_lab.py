"""Makes a lab of tiny notebooks that are executed for real."""

from __future__ import annotations

from pathlib import Path

import nbformat


def add_notebook(
    lab: Path,
    name: str,
    *cells: str,
    parameters: str = "",
    question: str = "Why?",
    minutes: float | None = 0.1,
    estimate_s: str = "",
) -> Path:
    """Write a notebook: heading, parameters cell, then one code cell per text; return its file.

    Args:
        lab: The lab's top folder.
        name: Such as "02_cold_start".
        cells: Sources of the code cells.
        parameters: Source of the parameters cell.
        question: For the metadata.
        minutes: For the metadata; None leaves it out.
        estimate_s: For the metadata; "" leaves it out.
    """
    notebook = nbformat.v4.new_notebook()
    about = {"question": question, "hardware": "any", "minutes": minutes, "estimate_s": estimate_s}
    notebook.metadata["ollamalab"] = {name: value for name, value in about.items() if value not in (None, "")}
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# About {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(cell) for cell in cells),
    ]
    path = lab / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    (lab / "pyproject.toml").touch()
    nbformat.write(notebook, path)
    return path


def add_parameters(lab: Path, profile: str, name: str, text: str) -> None:
    """Write a parameter file."""
    path = lab / "params" / profile / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
