"""Makes a run folder as a batch leaves it, with plausible made-up numbers, to look at and to test with.

``python tests/plausible_run.py FOLDER`` writes one and its ``report.html``.
"""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ollamalab import plots
from ollamalab.compare import (
    Comparison,
    Metric,
    blocks_for_pairs,
    compare_arms,
    design,
    not_testable,
    settle_fact,
)
from ollamalab.records import Outcome, RequestRecord, Sample, ServerTimings
from ollamalab.report import Arm, Column, Contrast, Report, Table, new_manifest, utc_now, write_manifest

TARGET = "embedded · smollm2:135m Q4_1"

EXPERIMENTS = {
    "01_host_inventory": ("What is this host, and what does it do with one request at a time?", 0.4),
    "02_cold_start": ("Where do the seconds of a first request go, and which of them can be saved?", 0.7),
    "07_parallel_slots": ("How many parallel slots pay on this host, at the same offered load?", 0.7),
    "09_cluster_routing": ("Which routing keeps two unequal servers busy?", 0.7),
    "15_report": ("What did this run confirm, refute or leave open?", 0.1),
}


def request(index: int, arm: str, start_s: float, wait_s: float, tokens: int, step_s: float) -> RequestRecord:
    """Return a finished request whose tokens come at a steady pace."""
    first_s = start_s + wait_s
    times = tuple(first_s + step_s * place for place in range(tokens))
    return RequestRecord(
        index=index,
        arm=arm,
        block=index // 4,
        visit=index,
        target="http://127.0.0.1:11434",
        model="smollm2:135m",
        outcome=Outcome.OK,
        status=200,
        intended_s=start_s,
        sent_s=start_s + 0.0004,
        headers_s=first_s - 0.001,
        first_token_s=first_s,
        last_token_s=times[-1],
        end_s=times[-1] + 0.002,
        token_times_s=times,
        output_tokens=tokens,
        prompt_tokens=31,
        requested_tokens=tokens,
        done_reason="length",
        server=ServerTimings(
            total_s=times[-1] - start_s,
            load_s=0.004,
            prompt_tokens=31,
            prompt_eval_s=0.09,
            eval_tokens=tokens,
            eval_s=step_s * (tokens - 1),
        ),
    )


def poisson_load(slots: int, requests: int, rng: random.Random) -> list[RequestRecord]:
    """Return requests as a server with so many slots would answer them, first come first served."""
    free = [0.0] * slots
    records, due_s = [], 0.0
    for index in range(requests):
        due_s += rng.expovariate(6.0)
        place = free.index(min(free))
        begin_s = max(due_s, free[place])
        step_s = 0.0075 + 0.0022 * slots * rng.uniform(0.8, 1.2)
        record = request(index, f"{slots} slots", due_s, begin_s - due_s + 0.09, 24, step_s)
        free[place] = record.last_token_s or begin_s
        records.append(record)
    return records


def compared(metric: Metric, ratio: float, noise: float, pairs: int, rng: random.Random) -> Comparison:
    """Return a comparison of visits that differ by a ratio, with lognormal noise."""
    visits = design(("before", "after"), blocks_for_pairs(pairs, 2), rng)
    values = {
        visit: (ratio if visit.arm == "after" else 1.0) * math.exp(rng.gauss(0.0, noise)) for visit in visits
    }
    return compare_arms(values, metric, arm="after", baseline="before")


def make_run(folder: Path) -> Path:
    """Write a run of five experiments: three saved whole, one failed, and the report."""
    folder.mkdir(parents=True)
    rng = random.Random(7)
    model = {"name": "smollm2:135m", "quantisation": "Q4_1", "digest": "b179c9523d0e6a0f98a330c7562b"}
    server = {"embedded": {"kind": "embedded", "version": "0.33.0", "models": [model]}}
    parameters = {name: {"target": "embedded", "seed": 7} for name in EXPERIMENTS}
    manifest = new_manifest(
        folder.name,
        profile="quick",
        experiments={name: "failed" if "cluster" in name else "done" for name in EXPERIMENTS},
        parameters=parameters,
        checkout=Path(__file__).parents[1],
    )
    write_manifest(folder, replace(manifest, finished_utc=utc_now(), server=server))
    for name, (question, _) in EXPERIMENTS.items():
        write_notebook(folder / f"{name}.ipynb", name, question, failed="cluster" in name)
    reports = {name: Report(name, parameters=parameters[name], folder=folder) for name in EXPERIMENTS}
    fill_inventory(reports["01_host_inventory"])
    fill_cold_start(reports["02_cold_start"], rng)
    fill_parallel_slots(reports["07_parallel_slots"], rng)
    for name in ("01_host_inventory", "02_cold_start", "07_parallel_slots"):
        reports[name].server = server
        reports[name].save()
    return folder


def write_notebook(path: Path, name: str, question: str, *, failed: bool) -> None:
    """Write an executed notebook as papermill leaves it."""
    error = {
        "output_type": "error",
        "ename": "TargetError",
        "evalue": "no answer from http://gpu2:11434 in 5.0 s; is `ollama serve` running?",
        "traceback": [],
    }
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "one",
        "metadata": {},
        "outputs": [error] if failed else [],
        "source": "# papermill_description=open_target\nlab = await Lab.open(target)",
    }
    title = {"cell_type": "markdown", "id": "zero", "metadata": {}, "source": f"# {TITLES[name]}"}
    metadata = {
        "ollamalab": {"question": question, "minutes": 0.7, "hardware": "any"},
        "papermill": {"duration": 3.1 if failed else 31.4},
    }
    notebook = {"cells": [title, cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


TITLES = {
    "01_host_inventory": "Take stock of the host",
    "02_cold_start": "Take a cold start apart",
    "07_parallel_slots": "Turn up the parallel slots",
    "09_cluster_routing": "Route between servers",
    "15_report": "Read the run as a whole",
}


def fill_inventory(report: Report) -> None:
    """One table with the host's row."""
    columns = (
        Column(name="Configuration"),
        Column(name="Model"),
        Column(name="P50", unit="s", format=".2f"),
        Column(name="Rate", unit="requests/s", format=".2f"),
        Column(name="Output", unit="tokens/s", format=".1f"),
        Column(name="Energy", unit="J/token", format=".2f"),
    )
    rows = [
        (
            "2 × AMD EPYC, 25 GB, no GPU",
            "smollm2:135m Q4_1",
            (0.41, 0.39, 0.44),
            2.38,
            (114.2, 109.8, 118.9),
            None,
        )
    ]
    caption = "n = 24 requests of 48 tokens, one at a time; 95 % intervals. No GPU, so no energy."
    report.add_table(Table.of("host_row", "This host, one request at a time", columns, rows, caption=caption))
    report.add_finding(
        "One request at a time, this host writes 114 tokens/s; half of the requests take 0.41 s or less."
    )


def fill_cold_start(report: Report, rng: random.Random) -> None:
    """Stages, a comparison, claims C04, C05, C07 and C08."""
    for arm, wait_s in (("cold", 0.95), ("preloaded", 0.21)):
        for index in range(14):
            report.add_records(
                [request(index, arm, index * 2.0, wait_s * rng.uniform(0.85, 1.25), 16, 0.009)]
            )
    report.add_arm(Arm(name="cold", description="model not in memory"))
    report.add_arm(Arm(name="preloaded", description="empty request sent beforehand"))
    report.add_arm(
        Arm(name="first ever", description="page cache dropped", not_run="needs root to drop the page cache")
    )
    saved = report.save()
    stages = pd.DataFrame(
        {
            "spawn": [0.31, None, None],
            "load": [0.52, 0.48, None],
            "prefill": [0.11, 0.10, 0.10],
            "decode": [0.16, 0.15, 0.15],
            "other": [0.02, 0.02, 0.01],
        },
        index=["server and model cold", "model cold", "preloaded"],
    )
    report.add_figure(
        "stages",
        plots.stage_bars(
            stages,
            title="A preloaded model answers in a quarter of the time; loading is half of a cold start",
            caption="Medians of n = 14 each, 16 tokens; whisker: 95 % interval of the total. Page cache hot.",
            intervals={
                "server and model cold": (1.05, 1.21),
                "model cold": (0.70, 0.83),
                "preloaded": (0.25, 0.29),
            },
        ),
    )
    rows = [
        (name, *(None if pd.isna(value) else value for value in line), total)
        for (name, line), total in zip(
            ((name, list(line)) for name, line in stages.iterrows()),
            ((1.12, 1.05, 1.21), (0.75, 0.70, 0.83), (0.26, 0.25, 0.29)),
            strict=True,
        )
    ]
    seconds = [Column(name=name.capitalize(), unit="s", format=".2f") for name in [*stages.columns, "total"]]
    report.add_table(
        Table.of(
            "stages",
            "Stages of the first request",
            [Column(name="Scenario"), *seconds],
            rows,
            caption="Medians, n = 14 per scenario; total with its 95 % interval.",
        )
    )
    records = saved.records
    values = pd.DataFrame({"arm": records["arm"], "value": records["first_token_s"] - records["intended_s"]})
    report.add_figure(
        "first_token",
        plots.latency_strip(
            values,
            title="Every preloaded request begins before the fastest cold one",
            quantity="time to first token",
            baseline="cold",
            caption="One dot per request, 16 tokens each; page cache hot.",
        ),
    )
    ttft = Metric(name="ttft_s", better="lower", unit="s")
    evicted = settle_fact(holds=False, evidence="each request for another model evicted it")
    expired = settle_fact(holds=False, evidence="with the default keep-alive the model is gone after 5 min")
    for contrast in (
        Contrast(
            claim="C04",
            text="preloaded / cold, time to first token",
            comparison=compared(ttft, 0.22, 0.1, 12, rng),
            target=TARGET,
        ),
        Contrast(
            claim="C05",
            text="tuned / default settings, warm request",
            comparison=compared(ttft, 0.97, 0.15, 12, rng),
            target=TARGET,
        ),
        Contrast(claim="C07", text="resident after a ping every 6 h", observed=expired, n=3, target=TARGET),
        Contrast(claim="C08", text="resident beside another model", observed=evicted, n=4, target=TARGET),
        Contrast(text="mmap / no mmap, load", comparison=compared(ttft, 0.93, 0.2, 12, rng), target=TARGET),
    ):
        report.add_contrast(contrast)
    report.add_finding(
        "Loading takes 0.5 s of a cold first request of 0.8 s; a preload moves it out of sight."
    )
    report.add_finding("A ping every six hours keeps nothing warm: the default keep-alive is five minutes.")


def fill_parallel_slots(report: Report, rng: random.Random) -> None:
    """A sweep, shares, a timeline, an ECDF, a forest, and claims C12, C14, C17."""
    loads = {slots: poisson_load(slots, 40, rng) for slots in (1, 2, 4, 8)}
    for slots, records in loads.items():
        report.add_records(records)
        report.add_arm(Arm(name=f"{slots} slots", description=f"OLLAMA_NUM_PARALLEL={slots}"))
    report.add_samples(
        Sample(
            at_s=0.1 * step,
            source="host",
            values={"cpu_ratio": min(1.0, 0.8 + 0.3 * rng.random()), "swap_ratio": None},
        )
        for step in range(110)
    )
    saved = report.save()
    columns = (
        Column(name="Slots"),
        Column(name="Success", format=".1%"),
        Column(name="Mean response", unit="s", format=".2f"),
        Column(name="Throughput", unit="tokens/s", format=".1f"),
        Column(name="Total time", unit="s", format=".1f"),
    )
    points, rows = [], []
    for slots, records in loads.items():
        responses = [(record.end_s or 0.0) - record.intended_s for record in records]
        total_s = max(record.end_s or 0.0 for record in records) - records[0].intended_s
        mean_s, rate = sum(responses) / len(records), 24 * len(records) / total_s
        points.append({"x": slots, "value": rate, "low": rate * 0.95, "high": rate * 1.05})
        rows.append(
            (slots, 1.0, (mean_s, mean_s * 0.9, mean_s * 1.1), (rate, rate * 0.95, rate * 1.05), total_s)
        )
    report.add_table(
        Table.of(
            "staged",
            "Stages at 6 requests/s",
            columns,
            rows,
            caption="n = 40 per row, Poisson arrivals; 95 % intervals.",
        )
    )
    report.add_figure(
        "throughput",
        plots.sweep_lines(
            pd.DataFrame(points),
            title="Throughput stops growing at 4 slots (6 requests/s offered)",
            setting="parallel slots",
            quantity="output [tokens/s]",
            baseline=("offered", 144.0),
            caption="n = 40 requests per point, 24 tokens each; bars: 95 % intervals.",
        ),
    )
    decoding = {1: (5, 95), 2: (7, 20, 73), 4: (10, 15, 20, 15, 40), 8: (10, 10, 12, 15, 20, 33)}
    shares = pd.DataFrame({slots: pd.Series(parts) / 100 for slots, parts in decoding.items()}).T
    report.add_figure(
        "decoding",
        plots.concurrency_bars(
            shares,
            title="Sequences really decode at the same time: with 4 slots, 4 at once for 40 % of the time",
            setting="parallel slots",
            caption="Share of the time between first send and last token, n = 40 requests per row.",
        ),
    )
    records = saved.records
    four = records[records["arm"] == "4 slots"]
    cpu = saved.samples.query("name == 'cpu_ratio'")
    report.add_figure(
        "timeline",
        plots.slot_timeline(
            four,
            cpu=cpu,
            slots=4,
            title="Four slots stay full while requests wait",
            caption="n = 40 requests, Poisson, 6/s.",
        ),
    )
    report.add_figure(
        "responses",
        plots.latency_ecdf(
            pd.DataFrame({"arm": records["arm"], "value": records["end_s"] - records["intended_s"]}),
            title="More slots shorten the wait until 4; the slowest tenth gains most",
            quantity="response time from the planned send",
            baseline="1 slots",
            caption="6 requests/s, Poisson; dots: medians.",
        ),
    )
    ratios = pd.DataFrame(
        {
            "label": ["2 / 1 slots", "4 / 1 slots", "8 / 4 slots", "8 / 1 slots, embeddings"],
            "estimate": [0.55, 0.31, 1.02, None],
            "low": [0.49, 0.26, 0.93, None],
            "high": [0.62, 0.37, 1.11, None],
            "n": [24, 24, 24, None],
        }
    )
    report.add_figure(
        "ratios",
        plots.ratio_forest(
            ratios,
            title="Four slots answer in a third of the time; eight add nothing",
            quantity="mean response time",
            caption="Hodges–Lehmann over pairs, exact 95 % intervals; 6 requests/s.",
        ),
    )
    response = Metric(name="response_s", better="lower", unit="s")
    parallel = settle_fact(holds=False, evidence="up to four sequences decoded at the same time")
    for contrast in (
        Contrast(
            claim="C12",
            text="4 / 1 slots, mean response",
            comparison=compared(response, 0.31, 0.2, 24, rng),
            target=TARGET,
        ),
        Contrast(claim="C14", text="Ollama / cLLM", observed=not_testable("cLLM is not published")),
        Contrast(claim="C17", text="decoding at once, 4 slots", observed=parallel, n=40, target=TARGET),
    ):
        report.add_contrast(contrast)
    report.add_finding(
        "Four slots answer in 0.31× the time of one (0.26–0.37); eight are no better than four."
    )


if __name__ == "__main__":
    made = make_run(Path(sys.argv[1]))
    sys.stdout.write(f"{made}\n")
