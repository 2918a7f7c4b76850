"""What an experiment leaves in its JSON file: arms, tables, figures, verdicts and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollamalab.report.tables import Table

#: Version of a run folder's format; raised when an older reader would misread a newer folder.
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: As in the records.
        description: What is different in it, in a few words.
        not_run: Why the target could not carry it; None if it ran.
    """

    name: str
    description: str = ""
    not_run: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One saved figure.

    Attributes:
        name: Identifier inside its experiment.
        file: File in the run's folder (SVG).
        title: The finding, as it stands over the figure; also its text for who cannot see it.
        caption: n, kind of interval, condition.
    """

    name: str
    file: str
    title: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One contrast, measured and named.

    Attributes:
        contrast: What was set against what, and the quantity: "preloaded / cold, time to first token".
        word: "confirmed", "refuted", "direction only", "not settled", "not testable here" for a
            published claim; else the comparison's own word; "" for a secondary row.
        claim: Id of the published claim; "" for none.
        estimate: Ratio after/before, or difference of proportions; None if it was observed
            instead of measured, or not at all.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        kind: What the three numbers are.
        n: Pairs, or observations.
        p_value: For the correction over a run's claims; None outside it.
        target: Server and model that it was measured on.
        reason: What was observed, or why it could not be tested, in one sentence.
    """

    contrast: str
    word: str
    claim: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    kind: Literal["ratio", "difference"] = "ratio"
    n: int | None = None
    p_value: float | None = None
    target: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ExperimentFile:
    """Content of ``<experiment>.json``.

    Attributes:
        schema: Version of the format.
        experiment: Name of its notebook.
        question: What it asks.
        findings: What was found, one sentence each.
        started_utc: When its notebook began, RFC 3339.
        saved_utc: When it was saved.
        parameters: As they were used.
        server: Kind, version and models with digest of the measured servers.
        load_average: 1, 5 and 15 minutes when it began; None where the system has none.
        arms: Of its comparison, in order, those that could not run included.
        tables: In the order of the notebook.
        figures: In the order of the notebook.
        verdicts: Claims first.
        records: Rows in ``<experiment>.parquet``.
        samples: Rows in ``<experiment>.samples.parquet``.
    """

    schema: int
    experiment: str
    question: str
    started_utc: str
    saved_utc: str
    findings: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    load_average: tuple[float, float, float] | None = None
    arms: tuple[Arm, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    records: int = 0
    samples: int = 0
