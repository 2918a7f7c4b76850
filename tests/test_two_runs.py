"""One run against another: the margin comes from repetitions, and a regression is an exit status."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plausible_run import request

from ollamalab.compare import Metric
from ollamalab.compare.runs import Cell, RunValue, compare_runs, run_spread, run_value
from ollamalab.errors import RunError
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import Report, new_manifest, write_manifest
from ollamalab.report.two_runs import changes_table, compare_run_folders, comparison_facts

TIME = Metric(name="response_s", better="lower", unit="s")
SUCCESS = Metric(name="success_ratio", better="higher", kind="difference", margin=0.05)
EXPERIMENTS = ("01_host_inventory", "02_cold_start", "07_parallel_slots")
CHECKOUT = Path(__file__).parents[1]


def records(factor: float, rng: random.Random, *, lost: int = 0) -> list[RequestRecord]:
    """Return 16 requests of each of two arms; a factor of 2 takes twice as long."""
    made = []
    for index in range(32):
        noise = factor * math.exp(rng.gauss(0, 0.02))
        record = request(index, "ab"[index % 2], 10.0 * index, 0.3 * noise, 8, 0.02 * noise)
        made.append(replace(record, outcome=Outcome.TIMEOUT) if index < lost else record)
    return made


def save_run(
    results: Path,
    name: str,
    factor: float,
    *,
    digest: str = "b179",
    driver: str | None = "550.54",
    commit: str = "1" * 40,
    lost: int = 0,
    parameters: Mapping[str, Any] | None = None,
    experiments: tuple[str, ...] = EXPERIMENTS,
) -> Path:
    """Save a run of these experiments on a made-up machine; return its folder."""
    folder = results / name
    folder.mkdir(parents=True)
    given = {"target": "embedded", "requests": 32, **(parameters or {})}
    models = [{"name": "smollm2:135m", "digest": digest}]
    server = {"embedded": {"kind": "embedded", "version": "1", "settings": {}, "models": models}}
    manifest = new_manifest(
        name,
        profile="quick",
        experiments=dict.fromkeys(experiments, "done"),
        parameters=dict.fromkeys(experiments, given),
        checkout=CHECKOUT,
    )
    manifest = replace(
        manifest,
        commit=commit,
        dirty=False,
        finished_utc="2026-11-21T00:00:00Z",
        machine={"cpu_model": "A", "cpus_usable": 2, "driver": driver, "gpus": [{"name": "H200"}]},
        server=server,
        load_average=(0.1, 0.1, 0.1),
    )
    write_manifest(folder, manifest)
    rng = random.Random(name)
    for experiment in experiments:
        report = Report(experiment, parameters=given, folder=folder)
        report.add_records(records(factor * math.exp(rng.gauss(0, 0.01)), rng, lost=lost))
        report.server = server
        report.save()
    return folder


def names(count: int) -> list[str]:
    return [f"2026-11-{day:02d}T000000Z" for day in range(1, count + 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four runs of one commit, and runs of a later one that are 1.6 times as slow and as before."""
    folder = tmp_path_factory.mktemp("results")
    for name in names(4):
        save_run(folder, name, 1.0)
    save_run(folder, "slow", 1.6, commit="2" * 40)
    save_run(folder, "alike", 1.0, commit="2" * 40)
    return folder


def ollamalab(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ollamalab.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def values(factors: Mapping[tuple[str, str], float], *, error: float = 0.01) -> dict[Cell, RunValue]:
    return {
        Cell(experiment=experiment, arm=arm, metric=TIME): RunValue(value=factor, error=error, units=16)
        for (experiment, arm), factor in factors.items()
    }


def noisy_run(rng: random.Random, *, slower: float = 1.0) -> dict[Cell, RunValue]:
    """Return four experiments of two arms that share their run's mood; the first may be slower."""
    factors = {}
    for experiment in "wxyz":
        mood = rng.gauss(0, 0.05)
        for arm in "ab":
            planted = slower if experiment == "w" else 1.0
            factors[experiment, arm] = planted * math.exp(mood + rng.gauss(0, 0.01))
    return values(factors)


def test_runs_of_the_same_conditions_are_rarely_told_apart_and_a_doubling_is() -> None:
    rng = random.Random(3)
    alarms = found = 0
    for _ in range(100):
        repeated = [noisy_run(rng) for _ in range(4)]
        spread = run_spread(repeated)
        same = compare_runs(repeated[0], noisy_run(rng), spread)
        alarms += any(change.is_better is not None for change in same)
        slow = compare_runs(repeated[0], noisy_run(rng, slower=2.0), spread)
        worse = {change.cell.experiment for change in slow if change.is_better is False}
        found += worse == {"w"}
    assert alarms <= 5
    assert found >= 95


def test_the_larger_of_own_and_pooled_spread_counts() -> None:
    runs = [
        values({("x", "a"): quiet, ("y", "a"): loud}) for quiet, loud in ((1, 1), (1.001, 2), (0.999, 0.5))
    ]
    spread = run_spread(runs)
    assert spread is not None
    assert spread.own["x", "response_s"] < 0.01 < spread.pooled["response_s"] < spread.own["y", "response_s"]
    margins = {change.cell.experiment: change.margin for change in compare_runs(runs[0], runs[1], spread)}
    assert 1 < margins["x"] < margins["y"]


def test_two_repetitions_show_no_spread() -> None:
    assert run_spread([values({("x", "a"): 1.0})] * 2) is None


def test_an_assumed_margin_has_to_be_cleared_by_the_inner_interval() -> None:
    before = values({("x", "a"): 1.0})
    ratios = {1.2: None, 1.26: None, 1.4: False, 0.6: True}
    for ratio, better in ratios.items():
        (change,) = compare_runs(before, values({("x", "a"): ratio}), None)
        assert change.is_better is better, ratio
    (noisy,) = compare_runs(before, values({("x", "a"): 1.4}, error=0.1), None)
    assert noisy.is_better is None


def test_seven_units_carry_no_value_and_no_mean_no_ratio() -> None:
    assert run_value([1.0] * 7, TIME) is None
    assert run_value([0.0] * 8, TIME) is None
    value = run_value([1.0] * 8, SUCCESS)
    assert value is not None
    assert value.value == 1
    assert value.error > 0.05  # eight of eight is not "never fails"


def test_more_failures_are_a_regression_though_they_are_fewer_slow_answers() -> None:
    before = {Cell(experiment="x", arm="a", metric=SUCCESS): run_value([1.0] * 200, SUCCESS)}
    after = {Cell(experiment="x", arm="a", metric=SUCCESS): run_value([1.0, 0.0] * 100, SUCCESS)}
    (change,) = compare_runs(before, after, None)  # type: ignore[arg-type]
    assert change.word == "regression"


def test_a_slower_run_is_a_finding_with_the_margin_of_the_runs_beside_it(results: Path) -> None:
    done = ollamalab("compare", names(1)[0], "slow", "--out", results)
    assert done.returncode == 1, done.stderr
    first = done.stdout.index("Conditions that differ:\n  commit: 1111111111 → 2222222222")
    assert first < done.stdout.index("regression")
    assert "The margin comes from 4 runs" in done.stdout
    assert "18 regressions, 0 improvements, 6 within the margin" in done.stdout


def test_a_run_as_fast_is_well_and_the_same_backwards_is_an_improvement(results: Path) -> None:
    done = ollamalab("compare", names(1)[0], "alike", "--out", results)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 regressions, 0 improvements, 24 within the margin" in done.stdout
    back = compare_run_folders(results / "slow", results / "alike")
    assert back.improvements
    assert not back.regressions


def test_json_holds_every_number_of_the_table(results: Path) -> None:
    done = ollamalab("compare", names(1)[0], "slow", "--out", results, "--json", "-")
    facts = json.loads(done.stdout)
    assert done.returncode == 1
    assert facts == comparison_facts(compare_run_folders(results / names(1)[0], results / "slow"))
    assert facts["regressions"] == 18
    assert facts["margin"]["aa_runs"] == names(4)
    assert {change["verdict"] for change in facts["changes"]} == {"regression", "within the margin"}


def test_without_repetitions_the_margin_is_said_to_be_assumed(tmp_path: Path) -> None:
    one = save_run(tmp_path, "one", 1.0)
    other = save_run(tmp_path, "other", 1.15)
    comparison = compare_run_folders(one, other)
    assert not comparison.aa_runs
    assert "The margin is assumed, ±25 %" in comparison.margin_note
    assert "it takes 3" in comparison.margin_note
    assert not comparison.regressions
    assert "assumed" in changes_table(comparison, is_whole=True).caption


def test_named_repetitions_count_and_must_have_the_conditions_of_the_first(tmp_path: Path) -> None:
    one, other = save_run(tmp_path, "one", 1.0), save_run(tmp_path, "other", 1.0)
    more = [save_run(tmp_path, name, 1.0) for name in ("two", "three")]
    assert compare_run_folders(one, other, repetitions=more).aa_runs == ("one", "two", "three")
    stranger = save_run(tmp_path, "stranger", 1.0, driver="560.1")
    with pytest.raises(RunError, match="driver"):
        compare_run_folders(one, other, repetitions=[*more, stranger])


@pytest.mark.parametrize(("name", "value"), [("digest", "c000"), ("driver", "560.28")])
def test_another_digest_or_driver_refuses_unless_forced(tmp_path: Path, name: str, value: str) -> None:
    one = save_run(tmp_path, "one", 1.0)
    other = save_run(tmp_path, "other", 1.0, **{name: value})  # type: ignore[arg-type]
    done = ollamalab("compare", one, other)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert value in done.stderr
    assert "--force" in done.stderr
    forced = ollamalab("compare", one, other, "--force")
    assert forced.returncode == 0
    assert value in forced.stdout.splitlines()[1]


def test_experiments_with_other_parameters_are_left_out_unless_forced(tmp_path: Path) -> None:
    one = save_run(tmp_path, "one", 1.0)
    other = save_run(tmp_path, "other", 1.0, parameters={"requests": 64})
    with pytest.raises(RunError, match="requests: 32 → 64"):
        compare_run_folders(one, other)
    forced = compare_run_folders(one, other, is_forced=True)
    assert "02_cold_start requests: 32 → 64" in map(str, forced.conditions)


def test_runs_that_share_nothing_or_are_one_are_bad_input(tmp_path: Path) -> None:
    one = save_run(tmp_path, "one", 1.0, experiments=EXPERIMENTS[:1])
    other = save_run(tmp_path, "other", 1.0, experiments=EXPERIMENTS[1:])
    for names_, word in (
        ((one, other), "no experiment in common"),
        ((one, one), "itself"),
        ((one, "x"), "no run"),
    ):
        done = ollamalab("compare", *names_, "--out", tmp_path)
        assert done.returncode == 2
        assert word in done.stderr
        assert done.stderr.count("\n") == 1


def test_lost_answers_are_a_regression(tmp_path: Path) -> None:
    one, other = save_run(tmp_path, "one", 1.0), save_run(tmp_path, "other", 1.0, lost=24)
    comparison = compare_run_folders(one, other)
    assert {change.cell.metric.name for change in comparison.regressions} == {"success_ratio"}
