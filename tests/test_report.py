"""Saving and showing runs: whole files, equal records, one self-contained page."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import stat
import subprocess
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Drawn
from plausible_run import compared, make_run, request

from ollamalab.compare import Metric, not_testable, settle_fact
from ollamalab.errors import RunError
from ollamalab.files import write_together
from ollamalab.records import Outcome, RequestRecord, Sample, ServerTimings
from ollamalab.report import (
    Arm,
    Column,
    Contrast,
    Report,
    Table,
    claims_table,
    current_folder,
    find_run,
    judge_run,
    load_experiment,
    load_run,
    new_manifest,
    new_run_folder,
    read_manifest,
    root,
    run_folders,
    shown_folder,
    write_manifest,
    write_report,
)
from ollamalab.report.claims import count_words
from ollamalab.report.drawings import adapt, dark_counterpart, draw
from ollamalab.report.notebooks import execution_of, header_of

CHECKOUT = Path(__file__).parents[1]

FULL = RequestRecord(
    index=3,
    arm="a",
    block=1,
    visit=5,
    target="http://127.0.0.1:1",
    model="m",
    outcome=Outcome.OK,
    status=200,
    error="none",
    intended_s=1.0,
    sent_s=1.1,
    connected_s=1.2,
    sent_end_s=1.25,
    headers_s=1.3,
    first_token_s=1.4,
    last_token_s=1.6,
    end_s=1.7,
    token_times_s=(1.4, 1.5, 1.6),
    shared_reads=1,
    output_tokens=3,
    prompt_tokens=9,
    requested_tokens=3,
    done_reason="length",
    server=ServerTimings(
        total_s=0.6, load_s=0.1, prompt_tokens=9, prompt_eval_s=0.2, eval_tokens=3, eval_s=0.3
    ),
    warmup=True,
)
BARE = RequestRecord(index=0, target="t", model="m", outcome=Outcome.REFUSED, intended_s=0.0)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return a folder with the manifest of a batch, as a notebook finds it."""
    folder = tmp_path / "2026-11-21T034408Z"
    manifest = new_manifest(
        folder.name,
        profile="quick",
        experiments={"02_cold_start": "running"},
        parameters={},
        checkout=CHECKOUT,
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def plausible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with tables, figures, claims and a failed experiment."""
    return make_run(tmp_path_factory.mktemp("results") / "2026-11-21T034408Z")


# Records


def test_records_come_back_equal(run_folder: Path) -> None:
    """Records with every field, and with none that may be absent, are read as they were saved."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    report.add_records([FULL, BARE])
    assert report.save().requests == [FULL, BARE]


def test_every_field_is_a_column(run_folder: Path) -> None:
    """One column per field of a record and of the server's durations, also without any record."""
    frame = Report("02_cold_start", parameters={}, folder=run_folder).save().records
    plain = {field.name for field in fields(RequestRecord)} - {"server"}
    assert set(frame.columns) == plain | {f"server_{field.name}" for field in fields(ServerTimings)}


def test_absent_stays_absent_and_typed(run_folder: Path) -> None:
    """What is absent in all rows is NA in a column of its own type, never 0."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    report.add_records([BARE])
    frame = report.save().records
    assert frame["output_tokens"].isna().all()
    assert frame["output_tokens"].dtype == "Int64"
    assert frame["first_token_s"].dtype == float


def test_numpy_numbers_are_saved_as_numbers(run_folder: Path) -> None:
    """A moment that numpy computed is a moment."""
    report = Report("02_cold_start", parameters={"rate": np.float64(2.5)}, folder=run_folder)
    report.add_records([replace(BARE, end_s=np.float64(1.5))])
    saved = report.save()
    assert saved.requests[0].end_s == 1.5
    assert saved.file.parameters == {"rate": 2.5}


def test_samples_are_one_row_per_value(run_folder: Path) -> None:
    """A reading of two values is two rows; one that could not be told is NaN."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    report.add_samples([Sample(at_s=1.0, source="gpu0", values={"power_w": 70.0, "clock_mhz": None})])
    frame = report.save().samples
    assert list(frame["name"]) == ["power_w", "clock_mhz"]
    assert frame["value"].isna().tolist() == [False, True]


# Whole or not there


def test_a_full_disk_leaves_everything_as_it_was(run_folder: Path) -> None:
    """When the disk takes no more, the save is one error, and the former save is untouched."""
    script = f"""
import resource, signal
from pathlib import Path
from ollamalab.errors import RunError
from ollamalab.report import Report
from plausible_run import request

report = Report("02_cold_start", parameters={{"try": 1}}, folder=Path({str(run_folder)!r}))
report.save()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))  # the kernel now refuses longer files
report.parameters["try"] = 2
report.add_records(request(i, "a", i * 0.3717, 0.1 + i / 97, 200, 0.011 + i / 9973) for i in range(40))
try:
    report.save()
except RunError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=CHECKOUT / "tests", check=True
    )
    assert "cannot save" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    saved = load_experiment(run_folder, "02_cold_start")
    assert saved.file.parameters == {"try": 1}
    assert saved.requests == []
    assert not list(run_folder.glob(".*"))


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    """If the second file cannot be written, the first does not appear either."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="nothing was written"):
        write_together({tmp_path / "a.parquet": b"a", tmp_path / "file" / "b.json": b"b"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_that_cannot_sync_folders_keeps_files_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_together({tmp_path / "a.json": b"a", tmp_path / "b.json": b"b"})
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"a", b"b"]


def test_an_experiment_without_its_json_does_not_exist(run_folder: Path) -> None:
    """Data files alone, as a crash could leave them, are not taken for a saved experiment."""
    Report("02_cold_start", parameters={}, folder=run_folder).save()
    (run_folder / "02_cold_start.json").unlink()
    assert load_run(run_folder).experiments == {}


def test_saving_again_replaces_what_has_the_same_name(run_folder: Path) -> None:
    """A cell that runs twice leaves one table."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    for value in (1, 2):
        report.add_table(Table.of("t", "T", [Column(name="x")], [(value,)]))
        saved = report.save()
    assert [table.rows for table in saved.tables.values()] == [((2,),)]


def test_a_batch_keeps_its_own_manifest(run_folder: Path) -> None:
    """A notebook in a batch changes nothing in the manifest."""
    before = (run_folder / "manifest.json").read_bytes()
    Report("02_cold_start", parameters={}, folder=run_folder).save()
    assert (run_folder / "manifest.json").read_bytes() == before


def test_work_by_hand_gets_a_manifest(tmp_path: Path) -> None:
    """Saving by hand notes experiment after experiment with its parameters and server."""
    for name in ("01_host_inventory", "02_cold_start"):
        report = Report(name, parameters={"seed": 3}, folder=tmp_path / "interactive")
        report.server[name] = {"kind": "embedded"}
        report.save()
    manifest = read_manifest(tmp_path / "interactive")
    assert dict(manifest.experiments) == {"01_host_inventory": "done", "02_cold_start": "done"}
    assert manifest.parameters["01_host_inventory"] == {"seed": 3}
    assert set(manifest.server) == {"01_host_inventory", "02_cold_start"}
    assert manifest.profile == "interactive"


# Refusals


def test_a_newer_schema_is_refused_with_the_next_step(run_folder: Path) -> None:
    """A folder from a newer version is not misread."""
    path = run_folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99, "new": True}))
    with pytest.raises(RunError, match=r"newer ollamalab \(format 99.*update ollamalab"):
        load_run(run_folder)


@pytest.mark.parametrize("content", ["{", '{"schema": 1}', "[]"])
def test_a_damaged_manifest_is_one_line(run_folder: Path, content: str) -> None:
    """Broken JSON and missing fields name the file."""
    (run_folder / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        load_run(run_folder)


def test_damaged_rows_are_one_line(run_folder: Path) -> None:
    """A cut parquet file names itself and the way out."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    report.add_records([FULL])
    report.save()
    path = run_folder / "02_cold_start.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match=r"02_cold_start\.parquet cannot be read"):
        _ = load_experiment(run_folder, "02_cold_start").records


def test_an_unknown_experiment_names_the_saved_ones(plausible: Path) -> None:
    """Asking a run for what it has not lists what it has."""
    with pytest.raises(RunError, match="saved are: 01_host_inventory, 02_cold_start"):
        load_run(plausible).experiment("05_response_cache")


def test_contrasts_that_cannot_be_judged_are_refused(run_folder: Path) -> None:
    """An unknown claim, neither measurement nor observation, and a claim without a direction."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    measured = compared(Metric(name="ttft_s", better="lower", unit="s"), 0.5, 0.1, 8, random.Random(1))
    for contrast, word in (
        (Contrast(text="x", claim="C99", observed=not_testable("no")), "no published claim 'C99'"),
        (Contrast(text="x"), "either a comparison or what was observed"),
        (Contrast(text="x", claim="C03", comparison=measured), "which direction"),
    ):
        with pytest.raises(ValueError, match=word):
            report.add_contrast(contrast)


# Folders


def test_the_latest_run_is_a_batch(tmp_path: Path) -> None:
    """References and interactive work are never the latest, whatever their names sort like."""
    for name in ("2026-11-21T034408Z", "2026-11-21T034408Z-2", "reference-z", "interactive", "zzz"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "2027-01-01T000000Z").mkdir()  # begun, but never got a manifest
    assert find_run("", tmp_path).name == "2026-11-21T034408Z-2"
    assert find_run("reference-z", tmp_path).name == "reference-z"
    assert find_run(str(tmp_path / "zzz"), tmp_path) == tmp_path / "zzz"
    assert [folder.name for folder in run_folders(tmp_path)] == ["2026-11-21T034408Z", "2026-11-21T034408Z-2"]


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    """A typo in a run's name gets a suggestion; an empty folder says how to make a run."""
    with pytest.raises(RunError, match="make one with `ollamalab run`"):
        find_run("", tmp_path)
    (tmp_path / "2026-11-21T034408Z").mkdir()
    (tmp_path / "2026-11-21T034408Z" / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="did you mean 2026-11-21T034408Z"):
        find_run("2026-11-21T034409Z", tmp_path)


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    """The second run of a second does not write into the first."""
    from datetime import UTC, datetime

    now = datetime(2026, 11, 21, 3, 44, 8, tzinfo=UTC)
    names = [new_run_folder(tmp_path, now).name for _ in range(2)]
    assert names == ["2026-11-21T034408Z", "2026-11-21T034408Z-2"]


def test_root_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upward from a folder inside a lab; from outside, the checkout that is installed."""
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    assert root() == tmp_path.resolve()
    monkeypatch.chdir(tmp_path.parent)
    assert root() == CHECKOUT


def test_a_batch_tells_a_notebook_where_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OLLAMALAB_RUN wins; by hand it is results/interactive, and shown is the latest of all."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert current_folder({"OLLAMALAB_RUN": "/x"}) == shown_folder({"OLLAMALAB_RUN": "/x"}) == Path("/x")
    assert current_folder({}) == tmp_path / "results" / "interactive"
    with pytest.raises(RunError):
        shown_folder({})
    for name in ("interactive", "reference-a", "2026-11-21T034408Z"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "manifest.json").write_text("{}")
        assert shown_folder({}).name == name


def test_the_manifest_knows_code_and_machine(tmp_path: Path) -> None:
    """Commit inside the checkout and None outside; versions, cores, load."""
    inside = new_manifest("r", profile="quick", experiments={}, parameters={}, checkout=CHECKOUT)
    outside = new_manifest("r", profile="quick", experiments={}, parameters={}, checkout=tmp_path)
    assert (outside.commit, outside.dirty) == (None, None)
    if (CHECKOUT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", inside.commit or "")
    assert {"python", "ollamalab", "pandas"} <= set(inside.packages)
    assert inside.machine["cpus_usable"] >= 1
    assert inside.machine["gpus"] or inside.machine["no_gpu"]


# Tables


@pytest.mark.parametrize(
    ("cell", "spec", "text"),
    [
        (None, ".2f", "n/a"),
        (float("nan"), ".2f", "n/a"),
        (pd.NA, None, "n/a"),
        (np.float32(0.5), ".2f", "0.50"),
        (np.int64(12345), None, "12,345"),
        (-1.25, ".1f", "−1.2"),
        (0.994, ".1%", "99.4\u202f%"),
        (True, None, "yes"),
        (1234.5, None, "1,234"),
        (0.12345, None, "0.123"),
        ((1.34, 1.2, 1.5), ".2f", "1.34 (1.20–1.50)"),
        ((0.1, -0.3, 0.4), ".1f", "0.1 (−0.3 to 0.4)"),
        ((0.95, 0.912, 0.99), ".0%", "95\u202f% (91–99\u202f%)"),
        ((0.05, -0.21, 0.34), "+.0%", "+5\u202f% (−21 to +34\u202f%)"),
        ((1.34, None, None), ".2f", "1.34"),
        ((None, None, None), ".2f", "n/a"),
    ],
)
def test_a_cell_reads_as(cell: object, spec: str | None, text: str) -> None:
    """Absent is n/a; minus signs, percent signs and intervals are typeset."""
    table = Table.of("t", "T", [Column(name="x", format=spec)], [(cell,)])
    assert repr(table).splitlines()[-1].strip() == text
    plain = re.sub("<[^>]+>", "", table.html()).removeprefix("x")
    assert plain == text


def test_texts_stand_left_and_numbers_right() -> None:
    """A column of texts is aligned left, also in its heading; units follow the heading."""
    columns = [Column(name="Arm"), Column(name="Load", unit="s", format=".1f")]
    table = Table.of("t", "Title", columns, [("cold", 1.0), ("warm", None)], caption="n = 2")
    assert table.html().count('style="text-align:left') == 3
    assert repr(table).splitlines() == [
        "Title",
        "Arm   Load [s]",
        "────  ────────",
        "cold       1.0",
        "warm       n/a",
        "n = 2",
    ]
    assert "n = 2" in table._repr_html_()


def test_a_table_scrolls_in_its_own_box_on_a_phone() -> None:
    """Title and caption stay outside the box; short cells keep to one line, a long text wraps."""
    columns = [Column(name="Arm"), Column(name="Ratio", format=".2f"), Column(name="Why")]
    table = Table.of("t", "T", columns, [("guide", (0.97, 0.92, 1.01), "why " * 12)], caption="n = 8")
    page = table._repr_html_()
    assert re.findall("overflow-x:auto.*?</div>", page)[0].count("<table>") == 1
    assert page.index("</b>") < page.index("overflow-x")
    assert page.index("</div>") < page.index("n = 8")
    assert page.count("white-space:nowrap") == 2
    assert page.count("white-space:normal;min-width:20em") == 1


def test_a_row_that_does_not_fit_is_refused() -> None:
    """A missing cell is a mistake in the notebook, not an n/a."""
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table.of("t", "T", [Column(name="a"), Column(name="b")], [(1,)])


def test_a_table_comes_back_from_json(run_folder: Path) -> None:
    """Texts, counts, shares, intervals, flags and n/a survive the file."""
    row = ("x", 3, 0.5, None, True, (1.0, 0.9, 1.1))
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    table = report.add_table(Table.of("t", "T", [Column(name=str(index)) for index in range(6)], [row]))
    assert report.save().tables == {"t": table}


# Verdicts over a run


def test_a_difference_that_stands_alone_may_fall_among_many(tmp_path: Path) -> None:
    """The same contrast is named alone, and not any more beside nineteen that show nothing."""
    metric = Metric(name="ttft_s", better="lower", unit="s")
    weak = next(
        comparison
        for seed in range(300)
        if 0.02 < ((comparison := compared(metric, 0.93, 0.1, 12, random.Random(seed))).p_value or 1) < 0.04
    )
    empty = [
        comparison
        for seed in range(60)
        if ((comparison := compared(metric, 1.0, 0.1, 12, random.Random(seed))).p_value or 0) > 0.3
    ][:19]

    def word(others: int) -> str:
        folder = tmp_path / str(others)
        report = Report("02_cold_start", parameters={}, folder=folder)
        report.add_contrast(Contrast(text="weak", comparison=weak))
        for index, comparison in enumerate(empty[:others]):
            report.add_contrast(Contrast(text=f"other {index}", comparison=comparison))
        report.save()
        return next(entry.word for entry in judge_run(load_run(folder)) if entry.contrast.text == "weak")

    assert word(0).startswith("faster")
    assert "faster" not in word(19)


def test_claims_are_settled_from_what_was_saved(plausible: Path) -> None:
    """Measured against the published range, observed, or not testable; in the order of the claims."""
    settled = {entry.claim.id: entry for entry in judge_run(load_run(plausible)) if entry.claim}
    assert list(settled) == sorted(settled)
    assert settled["C12"].word == "confirmed"
    assert settled["C07"].word == "refuted"
    assert settled["C14"].word == "not testable here"
    assert settled["C12"].n == 24
    assert settled["C07"].n == 3
    assert sum(count_words(settled.values()).values()) == len(settled)


def test_the_claims_table_lists_every_claim(plausible: Path) -> None:
    """All twenty are there; those without a verdict say that they are not in this run."""
    table = claims_table(load_run(plausible))
    assert [row[0] for row in table.rows] == [f"C{number:02d}" for number in range(1, 21)]
    words = {row[0]: row[6] for row in table.rows}
    assert words["C01"] == "not in this run"
    assert words["C12"] == "confirmed"
    assert "tested together (Benjamini–Hochberg)" in table.caption


def test_a_claim_of_two_halves_has_a_row_for_each(run_folder: Path) -> None:
    """What was settled first is not hidden by what came after it."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    halves = {"speed": settle_fact(holds=True, evidence="faster"), "quality": not_testable("no original")}
    for half, verdict in halves.items():
        report.add_contrast(Contrast(text=half, claim="C11", observed=verdict))
    report.save()
    rows = [row for row in claims_table(load_run(run_folder)).rows if row[0] == "C11"]
    assert [row[6] for row in rows] == ["confirmed", "not testable here"]


# Notebooks' own words


def test_a_header_comes_from_the_notebook() -> None:
    """Title from the first heading, the rest from the metadata; absent minutes are None."""
    notebook = {
        "metadata": {"ollamalab": {"question": "Why?", "hardware": "GPU"}},
        "cells": [{"source": ["Text\n", "# Turn it up\n"]}],
    }
    header = header_of(notebook, "07_x")
    assert (header.title, header.question, header.minutes, header.hardware) == (
        "Turn it up",
        "Why?",
        None,
        "GPU",
    )
    assert header_of({"metadata": {}, "cells": []}, "07_x").title == "07_x"


def test_a_failure_names_cell_and_error_in_one_line() -> None:
    """Colours and line breaks of the message are gone; an expected error is no failure."""
    error = {"output_type": "error", "ename": "ValueError", "evalue": "\x1b[31mbad\x1b[0m\n  value"}
    expected = {
        "cell_type": "code",
        "metadata": {"tags": ["raises-exception"]},
        "outputs": [error],
        "source": "x",
    }
    cell = {
        "cell_type": "code",
        "metadata": {},
        "outputs": [error],
        "source": "# papermill_description=load_it\nx",
    }
    notebook = {"metadata": {"papermill": {"duration": 2.5}}, "cells": [expected, cell]}
    execution = execution_of(notebook)
    assert execution.seconds == 2.5
    assert execution.failure is not None
    assert (execution.failure.cell, execution.failure.error) == (
        "code cell 2 (load it)",
        "ValueError: bad value",
    )


# Figures


def figure(title: str = "Loads dominate") -> Drawn:
    """Return a figure with title, caption, a coloured line and a grey one."""
    drawn = Drawn(figsize=(3, 2))
    axes = drawn.subplots()
    axes.plot([1, 2], [1, 2], color="#0072b2")
    axes.plot([1, 2], [2, 1], color="#1f2430")
    axes.set_title(title, loc="left")
    drawn.text(0, 0, "n = 3", gid="caption")
    return drawn


def test_words_are_kept_beside_the_drawing(run_folder: Path) -> None:
    """Title and caption leave the SVG and stand in the JSON; the figure itself keeps them."""
    report = Report("02_cold_start", parameters={}, folder=run_folder)
    drawn = report.add_figure("stages", figure())
    saved = report.save()
    assert (saved.figures["stages"].title, saved.figures["stages"].caption) == ("Loads dominate", "n = 3")
    svg = saved.svg("stages")
    assert "Loads dominate" not in svg
    assert "n = 3" not in svg
    assert drawn.axes[0].get_title(loc="left") == "Loads dominate"
    assert all(text.get_visible() for text in drawn.texts)


def test_the_same_figure_is_the_same_file() -> None:
    """Neither time nor chance is in an SVG."""
    assert draw(figure(), salt="a").svg == draw(figure(), salt="a").svg


def test_figures_fit_a_dark_page() -> None:
    """Ink turns light, a dark blue is lifted, orange stays; text inside bars keeps its colour."""
    assert int(dark_counterpart("#1f2430")[1:3], 16) > 200
    assert int(dark_counterpart("#ffffff")[1:3], 16) < 60
    assert dark_counterpart("#e69f00") == "#e69f00"
    assert dark_counterpart("#0072b2") > "#0072b2"
    inside = (
        '<svg><g id="on-colour"><text style="fill: #1f2430"></text></g><path style="fill: #1f2430"/></svg>'
    )
    adapted = adapt(inside)
    assert '[style*="fill: #1f2430"]{fill:' in adapted
    assert '<text style="FILL: #1F2430">' in adapted


def test_a_figure_needs_a_plain_name(run_folder: Path) -> None:
    """A name is part of a file name."""
    with pytest.raises(ValueError, match="lower-case letters"):
        Report("x", parameters={}, folder=run_folder).add_figure("../up", figure())


# The page


class Page(HTMLParser):
    """Collects what a page loads, links to and says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.loads += [values[name] or "" for name in ("src", "data", "srcset") if name in values]
        if tag == "a":
            self.links.append(values["href"] or "")
        if values.get("id"):
            self.ids.add(values["id"] or "")
        if tag not in ("meta", "br", "img", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)


def test_the_report_needs_nothing_but_itself(plausible: Path) -> None:
    """Figures are inside, nothing is fetched, no script runs; links lead into the page or the folder."""
    page = Page(write_report(plausible).read_text())
    assert page.loads
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (plausible / link).is_file()
    assert "@import" not in write_report(plausible).read_text()


def test_the_report_shows_what_was_saved(plausible: Path) -> None:
    """Questions, findings, tables, captions, verdicts, arms that did not run, and the failing cell."""
    html = write_report(plausible).read_text()
    text = re.sub("<[^>]+>", "", html).replace("\u00a0", " ")
    for shown in (
        "Where do the seconds of a first request go",
        "A ping every six hours keeps nothing warm",
        "Stages of the first request",
        "Medians, n = 14 per scenario",
        "needs root to drop the page cache",
        "Failed in code cell 1 (open target).",
        "no answer from http://gpu2:11434",
        "4 of 5 experiments done",
        "13 claims not in this run",
        "smollm2:135m Q4_1",
        "contrasts tested together",
        "1.12 (1.05–1.21)",
        "n/a",
    ):
        assert shown in text, shown


def test_what_comes_from_outside_is_escaped(run_folder: Path) -> None:
    """Markup in findings, cells, captions, reasons and parameters is text."""
    evil = "<script>alert(1)</script>"
    report = Report("02_cold_start", parameters={"prompt": evil}, folder=run_folder)
    report.add_finding(evil)
    report.add_table(Table.of("t", evil, [Column(name=evil)], [(evil,)], caption=evil))
    report.add_figure("f", figure(evil), evil)
    report.add_arm(Arm(name=evil, not_run=evil))
    report.add_contrast(
        Contrast(text=evil, claim="C07", observed=settle_fact(holds=False, evidence=evil), target=evil)
    )
    report.server["x"] = {"kind": evil, "models": [{"name": evil, "digest": evil}]}
    report.save()
    manifest = read_manifest(run_folder)
    write_manifest(
        run_folder, replace(manifest, server=report.server, parameters={"02_cold_start": report.parameters})
    )
    html = write_report(run_folder).read_text()
    assert html.count("&lt;script&gt;") > 10
    assert "script" not in Page(html).tags


def test_an_unfinished_run_can_be_shown(run_folder: Path) -> None:
    """A batch that was cut off before anything was saved still has a page that says so."""
    html = write_report(run_folder).read_text()
    assert "unfinished" in html
    assert "cut off" in html
    assert "20 claims not in this run" in html


def test_the_report_goes_where_it_is_asked(plausible: Path, tmp_path: Path) -> None:
    """A given file is written, folders included."""
    path = write_report(plausible, tmp_path / "new" / "page.html")
    assert path.read_text().startswith("<!doctype html>")


def test_saved_rows_are_what_was_measured(plausible: Path) -> None:
    """The run of the other tests holds one row per request, with its tokens."""
    frame = load_run(plausible).experiment("07_parallel_slots").records
    assert len(frame) == 160
    assert len(frame["token_times_s"].iloc[0]) == request(0, "", 0.0, 0.1, 24, 0.01).output_tokens
