"""What a notebook hands over to be kept: a ``Report`` collects and saves it.

Everything of one experiment appears together, the JSON file last: an experiment without it does not
exist, and one with it is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollamalab.claims import CLAIMS
from ollamalab.errors import RunError
from ollamalab.files import write_together
from ollamalab.records import RequestRecord, Sample
from ollamalab.report.drawings import draw
from ollamalab.report.entries import SCHEMA, Arm, Contrast, ExperimentFile, Figure
from ollamalab.report.folders import INTERACTIVE, MANIFEST, current_folder, root
from ollamalab.report.manifest import (
    encode,
    load_average,
    new_manifest,
    read_manifest,
    utc_now,
    write_manifest,
)
from ollamalab.report.marks import marked_file, marked_table
from ollamalab.report.notebooks import header_of, read_notebook
from ollamalab.report.runs import Experiment, load_experiment
from ollamalab.report.tables import Table

_NAME = re.compile(r"[a-z0-9_]+")


class Report:
    """Collects what one experiment measured and found, and saves it.

    Adding a table, figure, arm or contrast under a name that is there replaces it, so that a cell can
    be run again; records and samples add up until ``clear``.

    Attributes:
        server: Name to what is known of each measured server.
        synthetic: Names of measured models with random weights; their mentions are marked.
    """

    def __init__(self, experiment: str, *, parameters: Mapping[str, Any], folder: Path | None = None) -> None:
        """Open a report.

        Args:
            experiment: Name of the notebook, "02_cold_start".
            parameters: As they are used, seeds included.
            folder: Run folder; None for the batch that executes the notebook, or
                ``results/interactive`` by hand.
        """
        self.experiment = experiment
        self.parameters = dict(parameters)
        self.folder = folder or current_folder(os.environ)
        self.server: dict[str, Any] = {}
        self.synthetic: set[str] = set()
        self._records: list[RequestRecord] = []
        self._samples: list[Sample] = []
        self._arms: dict[str, Arm] = {}
        self._tables: dict[str, Table] = {}
        self._figures: dict[str, tuple[Figure, bytes]] = {}
        self._contrasts: dict[tuple[str, str], Contrast] = {}
        self._findings: list[str] = []
        self._notes: list[str] = []
        self._started_utc = utc_now()
        self._load_average = load_average()

    def add_records(self, records: Iterable[RequestRecord]) -> None:
        """Add finished requests; each becomes one row."""
        self._records.extend(records)

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """Add readings of the samplers."""
        self._samples.extend(samples)

    def add_arm(self, arm: Arm) -> None:
        """Name one side of the comparison, also one that could not run."""
        self._arms[arm.name] = arm

    def add_table(self, table: Table) -> Table:
        """Keep a table; return it as it will be shown, so that a cell shows it."""
        self._tables[table.name] = marked = marked_table(table, self.synthetic)
        return marked

    def add_figure(self, name: str, figure: Any, caption: str = "") -> Any:
        """Keep a figure as SVG; return it, so that a cell shows it.

        Title and caption are kept as text beside the drawing, where they can be read on a phone and
        found by a search.

        Args:
            name: Identifier inside the experiment, lower-case letters, digits and "_".
            figure: A matplotlib figure; its title is the finding.
            caption: n, kind of interval, condition; "" for the one that ``plots`` wrote under it.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"a figure's name is lower-case letters, digits and '_', got {name!r}")
        drawing = draw(figure, salt=f"{self.experiment}.{name}")
        file = f"{self.experiment}.{name}.svg"
        entry = Figure(name=name, file=file, title=drawing.title, caption=caption or drawing.caption)
        self._figures[name] = (entry, drawing.svg)
        return figure

    def add_contrast(self, contrast: Contrast) -> Contrast:
        """Keep a contrast and what was measured; return it."""
        if contrast.claim and contrast.claim not in CLAIMS:
            raise ValueError(f"no published claim {contrast.claim!r}; known are {', '.join(CLAIMS)}")
        if (contrast.comparison is None) == (contrast.observed is None):
            raise ValueError(f"{contrast.text!r} needs either a comparison or what was observed")
        if contrast.advice and contrast.comparison is None:
            raise ValueError(f"{contrast.text!r} advises {contrast.advice.setting} without a comparison")
        claim = CLAIMS.get(contrast.claim)
        if contrast.comparison and claim and claim.low is None and contrast.claimed is None:
            raise ValueError(f"{contrast.claim} has no number: say which direction it claims")
        self._contrasts[contrast.claim, contrast.text] = contrast
        return contrast

    def add_finding(self, sentence: str) -> None:
        """Keep one sentence of what was found; they stand at the head of the experiment's section."""
        if sentence not in self._findings:
            self._findings.append(sentence)

    def add_notes(self, notes: Iterable[str]) -> None:
        """Keep what could not be measured and why, one line each; they stand under the tables."""
        self._notes += [note for note in notes if note not in self._notes]

    def clear(self) -> None:
        """Forget records, samples, notes and findings, for measuring again in the same session."""
        self._records.clear()
        self._samples.clear()
        self._findings.clear()
        self._notes.clear()

    def save(self) -> Experiment:
        """Write everything; return it as read back from the disk.

        Raises:
            RunError: It cannot be written (full disk, no permission); what was there stays.
        """
        # Brings pandas and pyarrow, a second to import.
        from ollamalab.report.frames import records_parquet, samples_parquet

        content = ExperimentFile(
            schema=SCHEMA,
            experiment=self.experiment,
            question=self._question(),
            started_utc=self._started_utc,
            saved_utc=utc_now(),
            findings=tuple(self._findings),
            notes=tuple(self._notes),
            parameters=self.parameters,
            server=self.server,
            load_average=self._load_average,
            arms=tuple(self._arms.values()),
            tables=tuple(self._tables.values()),
            figures=tuple(figure for figure, _ in self._figures.values()),
            verdicts=tuple(sorted(self._contrasts.values(), key=lambda contrast: not contrast.claim)),
            records=len(self._records),
            samples=sum(len(sample.values) for sample in self._samples),
        )
        base = self.folder / self.experiment
        write_together(
            {
                Path(f"{base}.parquet"): records_parquet(self._records),
                Path(f"{base}.samples.parquet"): samples_parquet(self._samples),
                **{self.folder / figure.file: svg for figure, svg in self._figures.values()},
                Path(f"{base}.json"): encode(marked_file(content, self.synthetic)),
            }
        )
        self._note_in_manifest()
        return load_experiment(self.folder, self.experiment)

    def _question(self) -> str:
        try:
            notebook = read_notebook(root() / "notebooks" / f"{self.experiment}.ipynb")
        except RunError:
            return ""
        return header_of(notebook, self.experiment).question

    def _note_in_manifest(self) -> None:
        """Keep the manifest of work by hand; a batch keeps its own.

        It names today's code and machine, and every experiment that was saved so far.
        """
        known = read_manifest(self.folder) if (self.folder / MANIFEST).is_file() else None
        if known and known.profile != INTERACTIVE:
            return
        manifest = new_manifest(
            self.folder.name,
            profile=INTERACTIVE,
            experiments={**(known.experiments if known else {}), self.experiment: "done"},
            parameters={**(known.parameters if known else {}), self.experiment: self.parameters},
            checkout=root(),
        )
        server = {**(known.server if known else {}), **self.server}
        write_manifest(self.folder, replace(manifest, finished_utc=utc_now(), server=server))
