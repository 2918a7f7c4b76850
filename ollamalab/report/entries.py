"""What an experiment leaves in its JSON file: arms, tables, figures, verdicts, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollamalab.compare import ClaimVerdict, Comparison
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
class Advice:
    """The setting in which the arm of a contrast differs from its baseline, as a person would write it.

    Attributes:
        part: Where it is written: an environment variable of the Ollama *server*, a key of ``ollamalab
            serve``'s file for the *gateway*, a field or option of a *request*, a habit of the *client*,
            or the tag of a *model*.
        setting: Its name there: "OLLAMA_NUM_PARALLEL", "cache", "options.num_batch".
        value: What the arm has, as it would be written: "4", "memory".
    """

    part: Literal["server", "gateway", "request", "client", "model"]
    setting: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One question with what was measured or observed; its verdict is given over the whole run.

    Either ``comparison`` or ``observed`` is there. Measured contrasts of a run are corrected together
    when they are shown, so the words here are those of the experiment alone.

    Attributes:
        text: What was set against what, and the quantity: "preloaded / cold, time to first token".
        claim: Id of the published claim that it settles; "" for none.
        comparison: As measured.
        observed: A factual claim settled by observation, or why it cannot be tested here.
        claimed: For a claim without a number, the direction that it names.
        n: Observations behind ``observed``; None if there were none.
        target: Server and model.
        advice: What to set if the comparison speaks for its arm; None if it is about no setting.
    """

    text: str
    claim: str = ""
    comparison: Comparison | None = None
    observed: ClaimVerdict | None = None
    claimed: Literal["lower", "higher"] | None = None
    n: int | None = None
    target: str = ""
    advice: Advice | None = None


@dataclass(frozen=True, kw_only=True)
class ExperimentFile:
    """Content of ``<experiment>.json``.

    Attributes:
        schema: Version of the format.
        experiment: Name of its notebook.
        question: What it asks.
        findings: What was found, one sentence each.
        notes: What could not be sampled and why, such as GPUs where there are none.
        started_utc: When its notebook began, RFC 3339.
        saved_utc: When it was saved.
        parameters: As they were used.
        server: Name to kind, version, settings and models (with digest) of each measured server.
        load_average: 1, 5 and 15 minutes when it began; None where the system has none.
        arms: Of its comparison, in order, those that could not run included.
        tables: In the order of the notebook.
        figures: In the order of the notebook.
        verdicts: Contrasts with what was measured, claims first.
        records: Rows in ``<experiment>.parquet``.
        samples: Rows in ``<experiment>.samples.parquet``.
    """

    schema: int
    experiment: str
    question: str
    started_utc: str
    saved_utc: str
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    load_average: tuple[float, float, float] | None = None
    arms: tuple[Arm, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Contrast, ...] = ()
    records: int = 0
    samples: int = 0
