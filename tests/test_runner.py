"""Plans and parameters: everything that can be wrong is found before anything starts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_lab import add_notebook, add_parameters

from ollamalab.errors import OllamaLabError, RunError, SettingsError
from ollamalab.report import new_run_folder, read_manifest, write_manifest
from ollamalab.runner import Plan, batch, discover, make_plan
from ollamalab.runner.batch import find_unfinished, remaining, start
from ollamalab.runner.parameters import check, parse_parameters
from ollamalab.runner.progress import Pace, spell

CELL = '''"""What can be set."""
target: str = "embedded"  # embedded, ollama, or a URL
rate_rps: float = 20.0  # mean arrivals, requests/s
requests: int = 60
warm: bool = True
slots: list[int] = [1, 2]  # é = one of them
extra = {"a": 1}
'''


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Return a lab with four notebooks, none of them executed."""
    add_notebook(tmp_path, "02_cold_start", parameters="repeats: int = 3\nseed: int = 0", minutes=0.5)
    add_notebook(tmp_path, "07_parallel_slots", parameters=CELL + "\nseed: int = 0")
    add_notebook(tmp_path, "15_report", parameters='run: str = ""')
    add_notebook(tmp_path, "16_later")
    (tmp_path / "notebooks" / "template.ipynb").write_text("not numbered, so not an experiment")
    return tmp_path


# Parameters


def test_a_parameters_cell_is_read() -> None:
    """Name, kind, default and comment of each line; the kind of a bare line is its value's."""
    found = parse_parameters(CELL, "x.ipynb")
    assert {name: (one.kind, one.default, one.text) for name, one in found.items()} == {
        "target": ("str", "embedded", "embedded, ollama, or a URL"),
        "rate_rps": ("float", 20.0, "mean arrivals, requests/s"),
        "requests": ("int", 60, ""),
        "warm": ("bool", True, ""),
        "slots": ("list[int]", [1, 2], "é = one of them"),
        "extra": ("dict", {"a": 1}, ""),
    }


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("requests: int = 2 * 30", "must be a plain value"),
        ("import os", "derived values belong in the next cell"),
        ("a, b = 1, 2", "lines `name: type = value`"),
        ('requests: int = "60"', r"requests must be int, got '60' \(str\)"),
        ("requests: int =", "is not Python"),
    ],
)
def test_a_cell_that_papermill_would_misread_is_refused(cell: str, message: str) -> None:
    """Derived values, statements and mistyped defaults name the notebook."""
    with pytest.raises(SettingsError, match=f"x.ipynb.*{message}"):
        parse_parameters(cell, "x.ipynb")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reqests": 5}, "no parameter 'reqests'; did you mean 'requests'?"),
        ({"zzz": 5}, "no parameter 'zzz'; known are target, rate_rps, requests, warm, slots, extra"),
        ({"requests": 5.0}, r"requests must be int, got 5.0 \(float\)"),
        ({"requests": True}, r"requests must be int, got True \(bool\)"),
        ({"warm": 1}, r"warm must be bool, got 1 \(int\)"),
        ({"rate_rps": "1e3"}, r"rate_rps must be float, got '1e3' \(str\)"),
        ({"slots": [1, "2"]}, r"slots must be list\[int\]"),
        ({"slots": 1}, r"slots must be list\[int\]"),
        ({"target": None}, r"target must be str, got None"),
        ({"extra": []}, "extra must be dict"),
    ],
)
def test_a_value_that_does_not_fit_is_named(values: dict[str, object], message: str) -> None:
    """File, parameter, expected type, value, and the nearest name."""
    with pytest.raises(SettingsError, match=f"f.yaml: {message}"):
        check(values, parse_parameters(CELL, "x"), "f.yaml")


def test_a_whole_number_will_do_for_a_float() -> None:
    """YAML's ``20`` is 20.0 where a float is asked for."""
    checked = check({"rate_rps": 20, "slots": [], "warm": False}, parse_parameters(CELL, "x"), "f")
    assert checked == {"rate_rps": 20.0, "slots": [], "warm": False}
    assert isinstance(checked["rate_rps"], float)


# Plans


def test_experiments_are_numbered_notebooks(lab: Path) -> None:
    """Others are left alone; question, minutes and hardware come from the metadata."""
    notebooks = discover(lab)
    assert [notebook.name for notebook in notebooks] == [
        "02_cold_start",
        "07_parallel_slots",
        "15_report",
        "16_later",
    ]
    header = notebooks[0].header
    assert (header.title, header.question, header.minutes, header.hardware) == (
        "About 02_cold_start",
        "Why?",
        0.5,
        "any",
    )


def test_the_report_runs_last(lab: Path) -> None:
    """Also when others have higher numbers, or it is named first."""
    assert [task.name for task in make_plan(lab).tasks][-1] == "15_report"
    chosen = make_plan(lab, names=["15", "16", "02_cold_start"])
    assert [task.name for task in chosen.tasks] == ["02_cold_start", "16_later", "15_report"]


@pytest.mark.parametrize("name", ["02_cold_start", "cold_start", "02", "2", "notebooks/02_cold_start.ipynb"])
def test_an_experiment_is_named_in_several_ways(lab: Path, name: str) -> None:
    """Full name, noun, number, or file; twice is once."""
    assert [task.name for task in make_plan(lab, names=[name, name]).tasks] == ["02_cold_start"]


def test_a_profile_changes_parameters(lab: Path) -> None:
    """Only what differs from the defaults is injected; the rest is known all the same."""
    add_parameters(lab, "gpu", "02_cold_start", "repeats: 9\nseed: 0\n")
    add_parameters(lab, "gpu", "15_report", "")
    tasks = {task.name: task for task in make_plan(lab, profile="gpu").tasks}
    assert tasks["02_cold_start"].changed == {"repeats": 9}
    assert tasks["02_cold_start"].parameters == {"repeats": 9, "seed": 0}
    assert tasks["15_report"].changed == {}
    assert make_plan(lab).tasks[0].changed == {}


def test_an_option_reaches_every_notebook_that_has_it(lab: Path) -> None:
    """It wins over the file; texts stay texts, other kinds are read as YAML."""
    add_parameters(lab, "quick", "02_cold_start", "seed: 4\n")
    options = ["seed=5", "target=7", "slots=[4, 8]", "rate_rps=3"]
    tasks = {task.name: task.changed for task in make_plan(lab, options=options).tasks}
    assert tasks["02_cold_start"] == {"seed": 5}
    assert tasks["07_parallel_slots"] == {"seed": 5, "target": "7", "slots": [4, 8], "rate_rps": 3.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["02_cold_strat"]}, "no experiment '02_cold_strat'; did you mean 02_cold_start?"),
        ({"names": ["99"]}, "no experiment '99'; `ollamalab list` shows them"),
        ({"profile": "gup"}, "no profile 'gup'; known are gpu, quick"),
        ({"profile": "gpu"}, r"params/gpu/02_cold_start.yaml: no parameter 'repats'; did you mean 'repeats'"),
        ({"options": ["repats=1"]}, "-p: no parameter 'repats'; did you mean 'repeats'"),
        ({"options": ["repeats=x"]}, "-p: repeats must be int, got 'x'"),
        ({"options": ["repeats"]}, "-p takes NAME=VALUE, got 'repeats'"),
        ({"options": ["repeats=1"], "names": ["15"]}, "-p: no parameter 'repeats'"),
    ],
)
def test_a_mistake_is_one_line(lab: Path, arguments: dict[str, list[str]], message: str) -> None:
    """Names, profiles, files and options: what is wrong, where, and what was probably meant."""
    add_parameters(lab, "gpu", "02_cold_start", "repats: 9\n")
    with pytest.raises(SettingsError, match=message) as caught:
        make_plan(lab, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "02_cold_sart",
            "",
            "params/gpu/02_cold_sart.yaml belongs to no notebook; did you mean 02_cold_start",
        ),
        ("02_cold_start", "- 1\n- 2", "must hold lines `name: value`, got list"),
        ("02_cold_start", "a: [1", "params/gpu/02_cold_start.yaml is not YAML"),
        ("02_cold_start", "1: 2", "no parameter 1"),
    ],
)
def test_a_broken_parameter_file_is_one_line(lab: Path, name: str, content: str, message: str) -> None:
    """A misnamed file would silently not count, a broken one silently mean the defaults."""
    add_parameters(lab, "gpu", name, content)
    with pytest.raises(SettingsError, match=message) as caught:
        make_plan(lab, profile="gpu")
    assert "\n" not in str(caught.value)


def test_no_notebook_is_an_error(tmp_path: Path) -> None:
    """An empty lab and a broken notebook are named."""
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(RunError, match="no notebooks/NN_name"):
        discover(tmp_path)
    (tmp_path / "notebooks" / "01_x.ipynb").write_text("{}")
    with pytest.raises(OllamaLabError, match=r"01_x\.ipynb is not a notebook"):
        discover(tmp_path)


# Resuming


def begin(plan: Plan, results: Path, minute: int, states: dict[str, str]) -> Path:
    """Return the folder of a run of that plan with states, started in that minute."""
    folder = new_run_folder(results, datetime(2026, 11, 21, 3, minute, tzinfo=UTC))
    made = start(plan, results)
    manifest = read_manifest(made)
    write_manifest(folder, replace(manifest, experiments={**manifest.experiments, **states}))
    (made / "manifest.json").unlink()
    made.rmdir()
    return folder


def test_the_newest_unfinished_equal_run_is_resumed(lab: Path, tmp_path: Path) -> None:
    """Finished runs, other parameters and unreadable folders are passed over."""
    results = tmp_path / "results"
    plan, other = make_plan(lab, names=["02", "15"]), make_plan(lab, names=["02", "15"], options=["seed=9"])
    all_done = {"02_cold_start": "done", "15_report": "done"}
    begin(plan, results, 1, {"02_cold_start": "failed"})
    wanted = begin(plan, results, 2, {"02_cold_start": "running"})
    begin(plan, results, 3, all_done)
    begin(other, results, 4, {})
    broken = begin(plan, results, 5, {})
    (broken / "manifest.json").write_text("{")
    assert find_unfinished(plan, results) == wanted
    with pytest.raises(RunError, match="leave out --resume"):
        find_unfinished(make_plan(lab, names=["16"]), results)


def test_a_run_of_another_commit_is_not_resumed(lab: Path, tmp_path: Path) -> None:
    """Half a run of one code and half of another would be shown as one."""
    results = tmp_path / "results"
    plan = make_plan(lab, names=["02", "15"])
    older = begin(plan, results, 1, {})
    newer = begin(plan, results, 2, {})
    write_manifest(newer, replace(read_manifest(newer), commit="abc1234567890"))
    assert find_unfinished(plan, results) == older
    write_manifest(older, replace(read_manifest(older), commit="def1234567890"))
    with pytest.raises(
        RunError, match=f"{newer.name} is unfinished, but of commit abc1234567, not of unknown;"
    ):
        find_unfinished(plan, results)


def test_nothing_finished_is_repeated_but_the_report(lab: Path, tmp_path: Path) -> None:
    """What is done stays; the report is made once more when anything before it ran."""
    plan = make_plan(lab)
    manifest = read_manifest(start(plan, tmp_path / "results"))
    done = dict.fromkeys(manifest.experiments, "done")

    def left(**states: str) -> list[str]:
        changed = {f"{name[1:]}": state for name, state in states.items()}
        return [task.name for task in remaining(plan, replace(manifest, experiments={**done, **changed}))]

    assert left() == []
    assert left(_07_parallel_slots="running") == ["07_parallel_slots", "15_report"]
    assert left(_02_cold_start="failed", _15_report="waiting") == ["02_cold_start", "15_report"]
    assert left(_15_report="waiting") == ["15_report"]


def test_a_run_that_cannot_begin_leaves_no_folder(lab: Path, tmp_path: Path) -> None:
    """A file in the place of the results is an error, not half a run."""
    (tmp_path / "results").write_text("")
    with pytest.raises(RunError, match="choose another with --out"):
        start(make_plan(lab), tmp_path / "results")


def test_a_resumed_run_has_no_end_until_it_ends_again(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended with failures is resumed and cut off: its report must not call it finished."""
    plan = make_plan(lab, names=["02"])
    folder = start(plan, tmp_path / "results")
    failed = {"02_cold_start": "failed"}
    write_manifest(
        folder, replace(read_manifest(folder), experiments=failed, finished_utc="2026-11-21T03:44:08Z")
    )

    def cut_off(*arguments: Any) -> tuple[str, None]:
        arguments[-1].asked = True
        return "waiting", None

    monkeypatch.setattr(batch, "_execute", cut_off)
    assert batch.run_batch(plan, folder, Console(quiet=True)).interrupted
    assert read_manifest(folder).finished_utc is None
    assert "unfinished" in (folder / "report.html").read_text()


# Time left


def test_time_left_follows_the_pace_so_far() -> None:
    """Twice as slow as announced so far: twice the announced rest."""
    assert Pace().left_s(60.0) == 60.0
    assert Pace(announced_s=30.0, taken_s=60.0).left_s(60.0) == 120.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "10 s"), (42, "40 s"), (58, "1 min"), (200, "3 min"), (4000, "1 h 07 min")]
)
def test_durations_are_round(seconds: float, text: str) -> None:
    """What is left is a guess and reads like one."""
    assert spell(seconds) == text
