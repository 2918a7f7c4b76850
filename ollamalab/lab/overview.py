"""The tables of host and run: machine, throughput row, findings, manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ollamalab.gpu import describe_gpus
from ollamalab.host import describe
from ollamalab.lab.subject import Subject
from ollamalab.loadgen import LoadResult
from ollamalab.metrics import (
    completed,
    completed_rps,
    e2e_final_line_s,
    output_tokens_per_s,
    summarise_requests,
)
from ollamalab.report import Column, Run, Table, find_run, load_run, root, shown_folder

_GIB = 2**30


def shown_run(name: str = "") -> Run:
    """Return the run to show.

    Args:
        name: Name or folder of a run; "" for the batch that executes the notebook, else the latest run,
            else the reference that comes with the repository.

    Raises:
        RunError: There is none.
    """
    return load_run(find_run(name, root() / "results") if name else shown_folder(os.environ))


def machine_table() -> Table:
    """Return the facts of this machine that can change a number."""
    facts, gpus = describe(), describe_gpus()
    rows = [
        ("CPU", facts["cpu_model"]),
        ("Cores usable", f"{facts['cpus_usable']} of {facts['cpus_logical']}"),
        ("Memory", f"{facts['memory_bytes'] / _GIB:.1f} GiB"),
        ("Kernel", facts["kernel"]),
        ("Operating system", facts["os"]),
        ("Python", facts["python"]),
        ("Virtualisation", facts["virtualisation"]),
        ("Load average", ", ".join(f"{load:.2f}" for load in facts["load_average"])),
        *((f"GPU {index}", gpu_text(gpu)) for index, gpu in enumerate(gpus["gpus"])),
        *([("Driver", gpus["driver"])] if gpus["driver"] else [("GPU", gpus["reason"])]),
    ]
    return Table.of("machine", "This machine", [Column(name="Fact"), Column(name="Value")], rows)


def configuration_text() -> str:
    """Return the machine in a few words: "2 × AMD EPYC, 24 GiB, no GPU"."""
    facts, gpus = describe(), describe_gpus()["gpus"]
    memory = f"{facts['memory_bytes'] / _GIB:.0f} GiB"
    names = ", ".join(map(gpu_text, gpus)) or "no GPU"
    return f"{facts['cpus_usable']} × {facts['cpu_model']}, {memory}, {names}"


def gpu_text(gpu: Mapping[str, Any]) -> str:
    """Return one of ``describe_gpus`` in a few words: "NVIDIA H200 140 GiB"; what is not told is left out."""
    memory_bytes = gpu.get("memory_bytes")
    memory = "" if memory_bytes is None else f" {memory_bytes / _GIB:.0f} GiB"
    return f"{gpu['name'] or 'unnamed GPU'}{memory}"


def throughput_row(subject: Subject, single: LoadResult, several: LoadResult) -> Table:
    """Return this host's row of the throughput table of source S4.

    Args:
        subject: What was measured.
        single: One client: its P50.
        several: Several clients: what they get together.
    """
    clients = several.settings.clients
    latency = summarise_requests(single.records, e2e_final_line_s)
    return Table.of(
        "throughput",
        "This host's row",
        [
            Column(name="Configuration"),
            Column(name="Model"),
            Column(name="P50, 1 client", unit="ms", format=".0f"),
            Column(name=f"QPS, {clients} clients", format=".2f"),
            Column(name=f"tokens/s, {clients} clients", format=".1f"),
            Column(name="tokens/s, 1 client", format=".1f"),
        ],
        [
            (
                configuration_text(),
                subject.name,
                None if latency.p50 is None else latency.p50 * 1e3,
                completed_rps(several.records),
                output_tokens_per_s(several.records),
                output_tokens_per_s(single.records),
            )
        ],
        caption=f"P50: E2E to the final line, n = {latency.n}. QPS and tokens/s: completed requests and "
        f"their tokens per second of the run, closed loop of {clients} clients, n = {several.planned}."
        f"{_short_text(single, several)}",
    )


def _short_text(*results: LoadResult) -> str:
    """Return how many answers the model ended by itself: each shortens E2E and raises QPS."""
    short = sum(result.short_replies for result in results)
    if not short:
        return ""
    asked = sum(len(completed(result.records)) for result in results)
    return f" {short} of {asked} answers ended before the length asked for: lower P50, higher QPS."


def throughput_sentence(subject: Subject, single: LoadResult, several: LoadResult) -> str:
    """Return this host's row as a sentence."""
    one, all_of_them = output_tokens_per_s(single.records), output_tokens_per_s(several.records)
    return (
        f"{subject.name}: {_known(one)} tokens/s for one client, {_known(all_of_them)} for "
        f"{several.settings.clients} together."
    )


def findings_table(run: Run) -> Table:
    """Return every finding of a run by experiment."""
    rows = [
        (name, finding)
        for name, experiment in run.experiments.items()
        for finding in experiment.file.findings
    ]
    return Table.of("findings", "Findings", [Column(name="Experiment"), Column(name="Finding")], rows)


def manifest_table(run: Run) -> Table:
    """Return what a run was made on and with."""
    manifest = run.manifest
    machine: Mapping[str, Any] = manifest.machine
    dirty = " with uncommitted changes" if manifest.dirty else ""
    rows = [
        ("Run", manifest.run),
        ("Started", manifest.started_utc),
        ("Profile", manifest.profile),
        ("Commit", f"{manifest.commit}{dirty}" if manifest.commit else None),
        ("CPU", machine.get("cpu_model")),
        ("Kernel", machine.get("kernel")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in manifest.packages.items())),
    ]
    return Table.of("manifest", "Made on and with", [Column(name="Fact"), Column(name="Value")], rows)


def _known(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0f}"
