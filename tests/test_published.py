"""The published tables, filled from a run: every number is the saved one, and what is missing says so."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from plausible_run import TARGET, compared, make_run, request

from ollamalab.compare import Metric
from ollamalab.deploy import profile_of_run
from ollamalab.report import (
    Advice,
    Arm,
    Column,
    Contrast,
    Report,
    Run,
    Table,
    before_after_table,
    gaps_table,
    load_run,
    read_manifest,
    recommend,
    recommendations_table,
    runs_beside,
    stages_table,
    throughput_table,
    write_manifest,
)
from ollamalab.report.html import render

TIME = Metric(name="response_s", better="lower", unit="s")
RATE = Metric(name="output_tokens_per_s", better="higher", unit="tokens/s")
ADVICE = Advice(part="server", setting="OLLAMA_NUM_PARALLEL", value="4")


def saved(run: Run, name: str, report: Report) -> Run:
    """Save an experiment into a run, and read the run again."""
    manifest = read_manifest(run.folder)
    write_manifest(run.folder, replace(manifest, experiments={**manifest.experiments, name: "done"}))
    report.save()
    return load_run(run.folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """Return a run of the test's own."""
    return load_run(shutil.copytree(made, tmp_path / "2026-11-21T034408Z"))


def test_a_run_that_measured_nothing_fills_every_table_with_reasons(run: Run) -> None:
    manifest = replace(run.manifest, experiments={})
    empty = Run(run.folder, manifest)
    for table in (
        before_after_table(empty),
        stages_table(empty),
        gaps_table(empty),
        throughput_table([empty]),
    ):
        assert repr(table)
    assert {row[6] for row in before_after_table(empty).rows} == {
        "not in this run: 02_cold_start",
        "not in this run: 12_server_settings",
        "not in this run: 13_gpu_and_energy",
    }
    assert "07_parallel_slots is not in this run" in stages_table(empty).caption
    assert "07_parallel_slots is not in this run" in gaps_table(empty).caption
    assert "Nothing to show" in recommendations_table(empty).caption


def test_before_and_after_are_the_claims_own_numbers(run: Run) -> None:
    cold, warm, _, _ = before_after_table(run).rows
    assert cold[:2] == ("Cold start", "190 → 30 s")
    assert cold[6] in ("confirmed", "refuted", "direction only", "not settled")
    before, after = (float(str(cold[place]).removesuffix(" s")) for place in (2, 3))
    assert after / before == pytest.approx(float(str(cold[4]).partition("×")[0]), rel=0.1)
    assert warm[0] == "Warm request"


def test_memory_is_the_leanest_setting_that_was_looked_at(run: Run) -> None:
    report = Report("12_server_settings", parameters={}, folder=run.folder)
    columns = [Column(name="Setting"), Column(name="Memory", unit="MB", format=",.0f")]
    rows = [("defaults", 200.0), ("q8_0 cache", 150.0), ("flash attention", 190.0), ("not run", None)]
    report.add_table(Table.of("memory", "Memory", columns, rows))
    memory = before_after_table(saved(run, "12_server_settings", report)).rows[2]
    assert memory[2:5] == ("200 MB", "150 MB", "0.75×")
    assert memory[6] == "observed: less"


def test_stages_and_gaps_come_from_the_visits_of_one_block(run: Run) -> None:
    report = Report("07_parallel_slots", parameters={}, folder=run.folder)
    arms = {"1 slot": 1.0, "4 slots": 0.5, "8 slots": 0.25}
    for arm in arms:
        report.add_arm(Arm(name=arm))
    records = []
    for block in range(8):
        for place, (arm, factor) in enumerate(arms.items()):
            made = request(block, arm, 10.0 * block, 1.0 * factor, 11, 0.1 * factor)
            records.append(replace(made, block=block, visit=3 * block + place))
    report.add_records(records)
    gap = [Column(name="Metric"), Column(name="Reference: 4 slots")]
    report.add_table(Table.of("gap", "Gap", gap, [("response_s", 1.0)]))
    again = saved(run, "07_parallel_slots", report)
    one, four, eight = stages_table(again).rows[-3:]
    assert (one[0], one[1], one[7]) == ("1 slot", 1.0, 8)
    assert one[2] == pytest.approx(2.0, rel=0.01)
    assert four[5][0] == four[6][0] == pytest.approx(0.5, rel=0.01)  # type: ignore[index]
    assert eight[5][0] == pytest.approx(0.5, rel=0.01)  # type: ignore[index]
    assert eight[6][0] == pytest.approx(0.25, rel=0.01)  # type: ignore[index]
    gaps = gaps_table(again)
    assert [column.name for column in gaps.columns] == ["Metric", "1 slot", "8 slots"]
    response = {row[0]: row[1:] for row in gaps.rows}["mean response"]
    assert [cell[0] for cell in response] == pytest.approx([1.0, -0.5], rel=0.02)  # type: ignore[index]


def test_throughput_is_collected_over_the_runs_that_can_be_read(run: Run, made: Path) -> None:
    report = Report("01_host_inventory", parameters={}, folder=run.folder)
    heads = (
        "Configuration",
        "Model",
        "P50, 1 client",
        "QPS, 4 clients",
        "tokens/s, 4 clients",
        "tokens/s, 1",
    )
    row = ("2 × A", "m", 460.0, 2.7, 87.0, 67.0)
    report.add_table(Table.of("throughput", "Row", [Column(name=name) for name in heads], [row]))
    report.save()
    other = shutil.copytree(made, run.folder.parent / "2026-11-20T000000Z")
    damaged = shutil.copytree(made, run.folder.parent / "2026-11-19T000000Z")
    (damaged / "manifest.json").write_text("{")
    runs = runs_beside(load_run(run.folder))
    assert [one.folder.name for one in runs] == [other.name, run.folder.name]
    table = throughput_table(runs)
    assert table.rows[-1] == (*row[:5], "4 clients", run.folder.name)
    assert sum(one[6] == "published" for one in table.rows) == 6


def with_contrasts(run: Run, *contrasts: Contrast, experiment: str = "09_cluster_routing") -> Run:
    report = Report(experiment, parameters={}, folder=run.folder)
    for contrast in contrasts:
        report.add_contrast(contrast)
    return saved(run, experiment, report)


def contrast(
    ratio: float, advice: Advice | None = ADVICE, metric: Metric = TIME, *, noise: float = 0.02
) -> Contrast:
    comparison = compared(metric, ratio, noise, 24, random.Random(f"{ratio}{advice}"))
    return Contrast(text=f"{advice} {ratio}", comparison=comparison, target=TARGET, advice=advice)


def test_a_setting_is_recommended_where_it_is_shown_to_be_better(run: Run) -> None:
    (found,) = recommend(with_contrasts(run, contrast(0.6)))
    assert found.pays
    assert found.word == "faster"
    assert found.evidence.endswith(f", n 24, on {TARGET}")
    assert ": 0.6" in found.evidence


def test_what_is_worse_or_not_told_apart_is_left_and_says_why(run: Run) -> None:
    worse, same = (replace(ADVICE, setting=name) for name in ("OLLAMA_A", "OLLAMA_B"))
    found = recommend(with_contrasts(run, contrast(1.5, worse), contrast(1.0, same)))
    assert [(one.advice.setting, one.pays) for one in found] == [("OLLAMA_A", False), ("OLLAMA_B", False)]
    assert found[0].word == "slower"
    assert found[1].word.startswith(("no difference shown", "equivalent"))


def test_of_several_values_the_best_is_taken(run: Run) -> None:
    values = {value: replace(ADVICE, value=value) for value in ("2", "4", "8")}
    times = (contrast(0.8, values["2"]), contrast(0.5, values["4"]), contrast(1.4, values["8"]))
    (found,) = recommend(with_contrasts(run, *times))
    assert found.advice.value == "4"
    assert found.rivals == ()


def test_what_pays_with_other_work_stands_beside_the_best(run: Run) -> None:
    models, prefix, turns = (
        Advice(part="gateway", setting="route", value=value) for value in ("model-aware", "prefix", "turns")
    )
    run = with_contrasts(run, contrast(0.5, models), contrast(1.3, turns))
    run = with_contrasts(run, contrast(0.7, prefix), contrast(1.4, models), experiment="10_prefix_reuse")
    (found,) = recommend(run)
    assert found.advice.value == "model-aware"
    assert [(rival.advice.value, rival.experiment) for rival in found.rivals] == [
        ("prefix", "10_prefix_reuse")
    ]
    rows = [(*row[2:4], row[-1]) for row in recommendations_table(run).rows]
    assert rows == [
        ("model-aware", "set it", "09_cluster_routing"),
        ("prefix", "or this", "10_prefix_reuse"),
    ]
    assert "With other work <code>prefix</code> pays" in render(run)
    (line,) = (line for line in profile_of_run(run).gateway if line.name == "route")
    assert line.value == "model-aware"
    assert any(why.startswith("with other work prefix pays: faster") for why in line.why)


def test_where_more_is_better_the_largest_gain_is_taken(run: Run) -> None:
    rates = [contrast(gain, replace(ADVICE, value=value), RATE) for value, gain in (("2", 1.2), ("8", 1.9))]
    (found,) = recommend(with_contrasts(run, *rates))
    assert (found.advice.value, found.word) == ("8", "higher")


def test_contrasts_about_no_setting_and_without_verdict_recommend_nothing(run: Run) -> None:
    secondary = replace(contrast(0.5), text="secondary")
    assert secondary.comparison is not None
    secondary = replace(secondary, comparison=replace(secondary.comparison, verdict=None, is_primary=False))
    assert recommend(with_contrasts(run, contrast(0.5, None), secondary)) == []


def test_the_table_puts_what_pays_first(run: Run) -> None:
    gateway = Advice(part="gateway", setting="cache", value="memory")
    table = recommendations_table(with_contrasts(run, contrast(1.4), contrast(0.1, gateway)))
    assert [row[:4] for row in table.rows] == [
        ("gateway", "cache", "memory", "set it"),
        ("server", "OLLAMA_NUM_PARALLEL", "4", "leave it"),
    ]


def test_the_report_begins_with_what_pays_and_links_its_evidence(run: Run) -> None:
    gateway = Advice(part="gateway", setting="cache", value="<memory>")
    html = render(with_contrasts(run, contrast(1.4), contrast(0.1, gateway)))
    summary = html[html.index('<section id="summary">') : html.index('<section id="claims">')]
    assert "<code>cache = &lt;memory&gt;</code>" in summary
    assert "In the file of ollamalab serve" in summary
    assert 'href="#09_cluster_routing"' in summary
    assert "1 setting measured and left as it is" in summary
    assert "at most 5" in summary


def test_the_report_of_a_run_without_advice_says_so_and_takes_the_keyboard(run: Run) -> None:
    html = render(run)
    assert "No setting was shown to pay in this run." in html
    body = html[html.index("<body>") :]
    assert body.index('class="skip" href="#summary"') < body.index("<header")
    scrolled = [part[:40] for part in body.split('<div class="scroll"')[1:]]
    assert any("tabindex" in part for part in scrolled)
    assert all("tabindex" in part or "<img" in part for part in scrolled)
