"""Runs as they lie on the disk: everything that is shown is read from here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ollamalab.errors import RunError
from ollamalab.records import Manifest, RequestRecord
from ollamalab.report.entries import Contrast, ExperimentFile, Figure
from ollamalab.report.manifest import decode, read_manifest
from ollamalab.report.notebooks import Execution, execution_of, read_notebook
from ollamalab.report.tables import Table

if TYPE_CHECKING:
    import pandas as pd

# ``frames`` brings pandas and pyarrow, a second to import: only when rows are asked for.


@dataclass(frozen=True)
class Experiment:
    """One saved experiment.

    Attributes:
        folder: The run's folder.
        file: Content of its JSON file.
    """

    folder: Path
    file: ExperimentFile

    @property
    def name(self) -> str:
        """Name of its notebook."""
        return self.file.experiment

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row per request, columns as in ``RequestRecord``."""
        from ollamalab.report.frames import read_frame

        return read_frame(self.folder / f"{self.name}.parquet")

    @cached_property
    def requests(self) -> list[RequestRecord]:
        """The same requests as records, for ``metrics`` and ``compare``."""
        from ollamalab.report.frames import read_records

        return read_records(self.folder / f"{self.name}.parquet")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Readings of the samplers: ``at_s``, ``source``, ``name``, ``value``."""
        from ollamalab.report.frames import read_frame

        return read_frame(self.folder / f"{self.name}.samples.parquet")

    @property
    def tables(self) -> dict[str, Table]:
        """Table by name, in the notebook's order."""
        return {table.name: table for table in self.file.tables}

    @property
    def figures(self) -> dict[str, Figure]:
        """Figure by name, in the notebook's order."""
        return {figure.name: figure for figure in self.file.figures}

    @property
    def verdicts(self) -> tuple[Contrast, ...]:
        """Contrasts with what was measured, claims first."""
        return self.file.verdicts

    def svg(self, name: str) -> str:
        """Return a figure's file.

        Raises:
            RunError: It is missing.
        """
        path = self.folder / self.figures[name].file
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}; run {self.name} again") from error


@dataclass(frozen=True)
class Run:
    """One saved run.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
    """

    folder: Path
    manifest: Manifest

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """Saved experiments by name; one that failed before it saved anything is not there."""
        return {
            name: load_experiment(self.folder, name)
            for name in sorted(self.manifest.experiments)
            if (self.folder / f"{name}.json").is_file()
        }

    def experiment(self, name: str) -> Experiment:
        """Return one saved experiment.

        Raises:
            RunError: The run has none of that name.
        """
        if name not in self.experiments:
            saved = ", ".join(self.experiments) or "nothing yet"
            raise RunError(f"{self.folder} has no {name!r}; saved are: {saved}")
        return self.experiments[name]

    def execution(self, name: str) -> Execution | None:
        """Return how an experiment's notebook went; None if there is no executed notebook."""
        path = self.folder / f"{name}.ipynb"
        return execution_of(read_notebook(path)) if path.is_file() else None


def load_run(folder: Path) -> Run:
    """Return a saved run; experiments are read when asked for.

    Raises:
        RunError: The folder is no run, is damaged, or is from a newer version of ollamalab.
    """
    return Run(folder, read_manifest(folder))


def load_experiment(folder: Path, name: str) -> Experiment:
    """Return one saved experiment; raises like ``load_run``."""
    return Experiment(folder, decode(folder / f"{name}.json", ExperimentFile))
