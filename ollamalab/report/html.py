"""The report of a run: one HTML file that needs nothing else, for a screen, a phone or paper."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from ollamalab.claims import CLAIMS
from ollamalab.files import write_whole
from ollamalab.protocol.synthetic import mark_synthetic
from ollamalab.records import Manifest
from ollamalab.report.advice import recommend
from ollamalab.report.claims import Judged, correction, count_words, judge_run, published
from ollamalab.report.notebooks import Header, header_of, read_notebook
from ollamalab.report.runs import Run, load_run

#: Shape and class of each verdict: told apart without colour.
_MARKS = {
    "confirmed": ("●", "good"),
    "direction only": ("◐", "partly"),
    "refuted": ("✕", "bad"),
    "not settled": ("○", "open"),
    "not testable here": ("–", "mute"),
}

#: Spaces between a number and what it counts, around an arrow, and after a comparison.
_LOOSE = re.compile(r"(?<=\d) (?=[%×A-Za-z])| (?=→)|(?<=[→≤≥=]) ")

#: Where each part's settings are written.
_PARTS = {
    "server": "In the environment of ollama serve",
    "gateway": "In the file of ollamalab serve",
    "request": "In every request",
    "client": "In the client's program",
    "model": "In the choice of the model",
}

#: How the report calls a state, where not by its name.
_STATES = {"running": "cut off", "waiting": "not run"}


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Render a run's report; return where it was written.

    Args:
        folder: The run's folder.
        target: HTML file; None for ``report.html`` in the folder.

    Raises:
        RunError: The folder is no run, is damaged, or the file cannot be written.
    """
    path = target or folder / "report.html"
    write_whole(path, render(load_run(folder)).encode())
    return path


def render(run: Run) -> str:
    """Return a run's report as HTML; everything in it comes from the run's folder."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ollamalab.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["tie"] = _tie
    judged = judge_run(run)
    settled = [entry for entry in judged if entry.claim]
    known = {entry.claim.id for entry in settled if entry.claim}
    reach = _reach(settled)
    advised = recommend(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        manifest=run.manifest,
        facts=facts(run.manifest),
        models=_models(run.manifest),
        took=_duration(_elapsed_s(run.manifest)),
        parts=_PARTS,
        pays=[found for found in advised if found.pays],
        left=[found for found in advised if not found.pays],
        claims=[_claim(entry, reach) for entry in settled],
        unmeasured=[claim for name, claim in CLAIMS.items() if name not in known],
        reach=reach,
        counts=[(word, count, *_mark(word)) for word, count in count_words(settled).items()],
        note=correction(judged),
        sections=[_section(run, name, judged) for name in sorted(run.manifest.experiments)],
    )


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return what a reader must know of the host and the server: label and value."""
    machine, servers = manifest.machine, manifest.server.values()
    kinds = [f"{server.get('kind', '')} {server.get('version', '')}".strip() for server in servers]
    names = [f"{model['name']} {model.get('quantisation') or ''}".strip() for model in _models(manifest)]
    gpus = Counter(str(gpu["name"]) for gpu in machine.get("gpus") or ())
    load = manifest.load_average
    cores, memory = machine.get("cpus_usable"), machine.get("memory_bytes")
    commit = manifest.commit and manifest.commit[:10] + (" + changes" if manifest.dirty else "")
    listed = [
        ("CPU", f"{cores} × {machine.get('cpu_model')}" if cores else None),
        ("Memory", f"{memory / 2**30:.0f} GiB" if memory else None),
        ("GPU", ", ".join(f"{count} × {name}" for name, count in gpus.items()) or "none"),
        ("System", " · ".join(str(machine[key]) for key in ("os", "kernel") if machine.get(key))),
        ("Server", ", ".join(dict.fromkeys(kinds))),
        ("Model", ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")),
        ("Code", f"ollamalab {manifest.packages.get('ollamalab', '')}" + (f" · {commit}" if commit else "")),
        ("Load average", " ".join(f"{value:.2f}" for value in load) if load else None),
    ]
    return [(label, value) for label, value in listed if value]


def _models(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the models of all measured servers, each once; those with random weights have the mark."""
    listed = [model for server in manifest.server.values() for model in server.get("models", ())]
    marked = [
        {**model, "name": mark_synthetic(model["name"])} if model.get("synthetic") else model
        for model in listed
    ]
    return list({(model["name"], model.get("digest")): model for model in marked}.values())


def _section(run: Run, name: str, judged: list[Judged]) -> dict[str, Any]:
    """Return everything that the template shows of one experiment."""
    path = run.folder / f"{name}.ipynb"
    header = Header(title=name, question="", minutes=None, hardware="any")
    if path.is_file():
        header = header_of(read_notebook(path), name)
    execution, experiment = run.execution(name), run.experiments.get(name)
    state = run.manifest.experiments[name]
    return {
        "name": name,
        "number": name.partition("_")[0],
        "header": header,
        "state": _STATES.get(state, state),
        "took": _duration(execution.seconds if execution else None),
        "failure": execution.failure if execution and state == "failed" else None,
        "not_run": execution.not_run if execution and state == "not run" else None,
        "notebook": path.name if path.is_file() else None,
        "file": experiment.file if experiment else None,
        "figures": [
            (figure, _data_uri(experiment.svg(figure.name))) for figure in experiment.figures.values()
        ]
        if experiment
        else [],
        "contrasts": [entry for entry in judged if entry.experiment == name and not entry.claim],
        "parameters": run.manifest.parameters.get(name, {}),
    }


def _claim(entry: Judged, reach: float) -> dict[str, Any]:
    mark, tone = _mark(entry.word)
    return {
        "entry": entry,
        "published": published(entry.claim) if entry.claim else "",
        "mark": mark,
        "tone": tone,
        "axis": _axis(entry, reach),
    }


def _mark(word: str) -> tuple[str, str]:
    return _MARKS.get(word, ("○", "open"))


def _axis(entry: Judged, reach: float) -> dict[str, float] | None:
    """Return places from 0 to 100 on a log axis around 1 for a small drawing of a ratio; None without one."""
    ratios = _ratios(entry)
    if "estimate" not in ratios:
        return None

    def place(ratio: float) -> float:
        share = math.log(min(max(ratio, 1 / reach), reach)) / math.log(reach)
        return round(50 + 50 * share, 2)

    return {name: place(ratio) for name, ratio in {**ratios, "band_low": 1 / 1.1, "band_high": 1.1}.items()}


def _ratios(entry: Judged) -> dict[str, float]:
    """Return the ratios that a claim's drawing shows; none without a measured ratio and its interval."""
    comparison, claim = entry.contrast.comparison, entry.claim
    if comparison is None or comparison.metric.kind != "ratio" or comparison.low is None or claim is None:
        return {}
    ratios = {
        "low": comparison.low,
        "estimate": comparison.estimate,
        "high": comparison.high,
        "published_low": claim.low,
        "published_high": claim.high,
    }
    return {name: ratio for name, ratio in ratios.items() if ratio}


def _reach(entries: Iterable[Judged]) -> float:
    """Return the ratio at the right end of the axis that all claims share: 2, 4, 8, 16 or 32."""
    ratios = [ratio for entry in entries for ratio in _ratios(entry).values()]
    widest = max((max(ratio, 1 / ratio) for ratio in ratios), default=2.0)
    return next((step for step in (2.0, 4.0, 8.0, 16.0) if widest <= step), 32.0)


def _tie(text: str) -> str:
    """Keep numbers and what belongs to them on one line."""
    return _LOOSE.sub("\u00a0", text)


def _data_uri(svg: str) -> str:
    """Return an SVG as an image address; as an image it can neither run scripts nor fetch anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _elapsed_s(manifest: Manifest) -> float | None:
    if manifest.finished_utc is None:
        return None
    start, end = (datetime.fromisoformat(text) for text in (manifest.started_utc, manifest.finished_utc))
    return (end - start).total_seconds()


def _duration(seconds: float | None) -> str:
    """Return "42 s", "9 min 05 s" or "2 h 10 min"; "" for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
