"""Tables of host and run: what is absent on a machine is told, never shown as 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lab_samples import URL, done, failed

from ollamalab import lab
from ollamalab.errors import RunError
from ollamalab.gpu import describe_gpus
from ollamalab.hosts.target import RemoteTarget
from ollamalab.lab import Subject
from ollamalab.lab.overview import configuration_text, gpu_text
from ollamalab.loadgen import InstrumentHealth, LoadResult, LoadSettings
from ollamalab.loadgen.health import lag_of
from ollamalab.records import RequestRecord
from ollamalab.report import RUN_VARIABLE, Report, load_run, new_manifest, root, write_manifest

SUBJECT = Subject(RemoteTarget(URL, "0.33.0"), "m:1b", seed=0)


def result(records: list[RequestRecord], clients: int) -> LoadResult:
    """Return a load that these records came from."""
    health = InstrumentHealth(
        cpu_ratio=0.1, loop_lag_s=lag_of([]), send_lag_s=lag_of([]), load_average=(0.0, 0.0, 0.0), reasons=()
    )
    return LoadResult(
        settings=LoadSettings(clients=clients, requests=max(1, len(records))),
        records=tuple(records),
        planned=len(records),
        health=health,
        is_complete=True,
    )


def test_the_machine_is_told_with_its_gpus_or_why_there_are_none() -> None:
    table = lab.machine_table()
    facts = dict(table.rows)
    assert {"CPU", "Cores usable", "Memory", "Kernel", "Python", "Load average"} <= facts.keys()
    gpus = describe_gpus()
    assert ("GPU" in facts) == (not gpus["gpus"])
    assert ("GPU 0" in facts) == ("Driver" in facts) == bool(gpus["gpus"])
    assert configuration_text().endswith("no GPU") == (not gpus["gpus"])


@pytest.mark.parametrize(
    ("gpu", "text"),
    [
        ({"name": "NVIDIA H200", "memory_bytes": 140 * 2**30}, "NVIDIA H200 140 GiB"),
        ({"name": "NVIDIA GB10", "memory_bytes": None}, "NVIDIA GB10"),
        ({"name": None, "memory_bytes": 8 * 2**30}, "unnamed GPU 8 GiB"),
        ({"name": "cannot be asked: GPU is lost"}, "cannot be asked: GPU is lost"),
    ],
)
def test_a_gpu_is_told_as_far_as_it_is_known(gpu: dict, text: str) -> None:
    assert gpu_text(gpu) == text


def test_the_row_of_a_host_by_hand() -> None:
    """11 requests of 10 tokens in 21 s one after the other; 4 in 5 s together."""
    single = [done(sent_s=2.0 * n, first_s=2.0 * n + 0.5, end_s=2.0 * n + 1) for n in range(11)]
    several = [done(end_s=5.0) for _ in range(4)]
    table = lab.throughput_row(SUBJECT, result(single, 1), result(several, 4))
    (row,) = table.rows
    assert row[1] == f"m:1b on {URL}"
    assert row[2] == pytest.approx(1000.0)
    assert row[3:] == (pytest.approx(0.8), pytest.approx(8.0), pytest.approx(110 / 21))
    assert [column.name for column in table.columns][3] == "QPS, 4 clients"
    assert "n = 11" in table.caption
    sentence = lab.throughput_sentence(SUBJECT, result(single, 1), result(several, 4))
    assert sentence == f"m:1b on {URL}: 5 tokens/s for one client, 8 for 4 together."


def test_answers_that_the_model_ended_early_are_told() -> None:
    """A model may stop whenever it likes: that is no failure, but the reader must know."""
    whole, early = (replace(done(tokens=tokens), requested_tokens=10) for tokens in (10, 5))
    several = result([whole] * 3, 4)
    told = lab.throughput_row(SUBJECT, result([whole, early], 1), several)
    assert told.caption.endswith(" 1 of 5 answers ended before the length asked for: lower P50, higher QPS.")
    assert "ended before" not in lab.throughput_row(SUBJECT, result([whole], 1), several).caption


@pytest.mark.parametrize("records", [[], [failed()]])
def test_a_row_of_nothing_is_not_available(records: list[RequestRecord]) -> None:
    nothing = result(records, 4)
    table = lab.throughput_row(SUBJECT, nothing, nothing)
    assert table.rows[0][2:] == (None, None, None, None)
    assert "n/a tokens/s for one client, n/a for 4" in lab.throughput_sentence(SUBJECT, nothing, nothing)


def saved_run(folder: Path) -> None:
    """Save a run of one experiment by hand."""
    folder.mkdir()
    manifest = new_manifest(
        folder.name, profile="quick", experiments={"01_x": "done"}, parameters={}, checkout=root()
    )
    write_manifest(folder, replace(manifest, commit="abc", dirty=True, packages={"numpy": "2.0"}))
    report = Report("01_x", parameters={}, folder=folder)
    report.add_finding("It is fast.")
    report.save()


def test_a_run_is_shown_by_its_findings_and_its_manifest(tmp_path: Path) -> None:
    saved_run(tmp_path / "run")
    shown = lab.shown_run(str(tmp_path / "run"))
    assert lab.findings_table(shown).rows == (("01_x", "It is fast."),)
    facts = dict(lab.manifest_table(shown).rows)
    assert facts["Run"] == "run"
    assert facts["Commit"] == "abc with uncommitted changes"
    assert facts["Packages"] == "numpy 2.0"
    outside = replace(shown, manifest=replace(shown.manifest, commit=None, machine={}))
    facts = dict(lab.manifest_table(outside).rows)
    assert (facts["Commit"], facts["CPU"], facts["Kernel"]) == (None, None, None)


def test_inside_a_batch_its_own_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_run(tmp_path / "run")
    monkeypatch.setenv(RUN_VARIABLE, str(tmp_path / "run"))
    assert lab.shown_run().manifest == load_run(tmp_path / "run").manifest


def test_a_run_that_is_not_there_is_named() -> None:
    with pytest.raises(RunError, match="no run 'nowhere'"):
        lab.shown_run("nowhere")
