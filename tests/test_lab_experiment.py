"""An experiment from its parameters to what is read back from the disk, on a scripted server."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ollama_standin
import pytest
from gpu_machine import recording
from lab_samples import E2E, compared

from ollamalab import lab
from ollamalab.compare import ClaimWord, Visit
from ollamalab.errors import TargetError
from ollamalab.lab import Lab, PromptShape, mean_of
from ollamalab.lab import subject as lab_subject
from ollamalab.loadgen import LoadSettings
from ollamalab.metrics import e2e_final_line_s
from ollamalab.records import Manifest, Outcome, RequestRecord
from ollamalab.report import RUN_VARIABLE, new_manifest, root, write_manifest, write_report
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import ServerSettings

EXPERIMENT = "07_parallel_slots"
SHAPE = PromptShape(prompt_tokens=64, num_predict=3)
MEAN_E2E = mean_of(e2e_final_line_s)
QUICK: dict[str, Any] = {"first_s": 0.002, "gap_s": 0.001, "tokens": 3}


def namespace(**values: Any) -> dict[str, Any]:
    """Return a notebook's globals: its parameters as they stand in it, and more."""
    notebook = json.loads((root() / "notebooks" / f"{EXPERIMENT}.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    found: dict[str, Any] = {}
    exec("".join(cell["source"]), found)  # its own annotated literals
    return found | {"unrelated": object()} | values


def manifest_of(experiment: Lab) -> Manifest:
    """Return the manifest of a run of this experiment."""
    parameters = {EXPERIMENT: experiment.parameters}
    return new_manifest(
        "r", profile="quick", experiments={EXPERIMENT: "done"}, parameters=parameters, checkout=root()
    )


@pytest.fixture
async def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    """The lab of a notebook that saves into a folder of its own."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv(RUN_VARIABLE, str(tmp_path / "run"))
    opened = Lab(EXPERIMENT, namespace(seed=11, requests=2))
    yield opened
    await opened.close()


@pytest.mark.parametrize("notebook", sorted(root().glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_whatever_a_notebook_takes_from_the_lab_is_public(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    used = {
        node.attr
        for cell in cells
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lab"
    }
    assert used
    assert used <= set(lab.__all__)


def test_parameters_are_those_of_the_notebooks_cell_as_they_are_used(experiment: Lab) -> None:
    assert experiment.parameters["seed"] == 11
    assert experiment.parameters["requests"] == 2
    assert experiment.parameters["slots"] == [1, 4, 8]
    assert "unrelated" not in experiment.parameters
    assert experiment.report.parameters == experiment.parameters


async def test_everything_of_an_experiment_is_read_back_from_the_disk(experiment: Lab) -> None:
    """Two servers, one half as fast: compared, sampled, settled, saved."""
    async with (
        ScriptedServer(Script(**QUICK)) as fast,
        ScriptedServer(Script(**QUICK | {"first_s": 0.2})) as slow,
    ):
        subjects = {
            "fast": await experiment.subject(fast.url, "scripted", name="fast"),
            "slow": await experiment.subject(slow.url, "scripted", name="slow"),
        }
        load = LoadSettings(requests=2, clients=2)
        with experiment.watch(*(subject.target for subject in subjects.values())) as sampling:
            trials = await experiment.compare(
                {name: subject.loads(load, SHAPE) for name, subject in subjects.items()}, pairs=8
            )
            alone = await subjects["fast"].offer(LoadSettings(requests=3, warmup=1), SHAPE)
        experiment.keep(sampling, {"alone": alone})
        slower = trials.contrast(E2E, mean_of(e2e_final_line_s), arm="slow", is_primary=True)
        experiment.settle("C12", slower, subjects["slow"])
        seen = lab.Observation(holds=False, evidence="two at once", n=16)
        experiment.observe("C17", seen, subjects["fast"])
        experiment.not_testable("C14", "not here")
        experiment.report.add_table(lab.staged_table("staged", "Stages", trials))
        saved = experiment.save()
    assert slower.verdict
    assert slower.verdict.text == "slower"
    assert len(saved.requests) == 8 * 2 * 2 + 4
    # Blocks of ABBA: four pairs of visits make eight pairs.
    assert [record.arm for record in saved.requests].count("slow") == 16
    assert [record.arm for record in saved.requests].count("alone") == 4
    assert {record.block for record in trials.records} == {0, 1, 2, 3}
    assert set(saved.file.server) == {"fast", "slow"}
    assert saved.file.server["slow"]["url"] == slow.url
    assert saved.file.parameters["seed"] == 11
    assert saved.tables["staged"].rows[0][0] == "fast"
    assert {"host", "sampling", "sampling:HostSampler"} <= set(saved.samples["source"])
    assert saved.file.notes == tuple(sampling.notes)
    claimed = {contrast.claim: contrast for contrast in saved.verdicts}
    assert claimed["C12"].text == "slow / fast, e2e_s"
    assert claimed["C12"].target == f"scripted on {slow.url}"
    assert claimed["C17"].observed is not None
    assert claimed["C17"].observed.word is ClaimWord.REFUTED
    assert claimed["C14"].observed is not None
    assert claimed["C14"].observed.word is ClaimWord.NOT_TESTABLE


async def test_failures_of_a_visit_are_saved_with_the_rest(experiment: Lab) -> None:
    async with ScriptedServer(Script(**QUICK, faults={2: Fault.BUSY, 5: Fault.RESET})) as server:
        subject = await experiment.subject(server.url, "scripted")
        visitor = subject.loads(LoadSettings(requests=1), SHAPE)
        trials = await experiment.compare({"a": visitor, "b": visitor}, pairs=4)
        saved = experiment.save()
    outcomes = [record.outcome for record in saved.requests]
    assert len(outcomes) == 8
    assert outcomes.count(Outcome.OK) == 6
    contrast = trials.contrast(E2E, mean_of(e2e_final_line_s), arm="b")
    assert contrast.lost_pairs >= 1
    assert contrast.pairs + contrast.lost_pairs == 4
    assert "of 4" in repr(lab.comparison_table("c", "Title", [contrast]))


async def test_an_unfit_client_is_a_finding(experiment: Lab) -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        subject = await experiment.subject(server.url, "scripted")
        await subject.offer(LoadSettings(requests=1), SHAPE)
        fit = replace(subject.health[0], reasons=())
        subject.health[:] = [fit, replace(fit, reasons=("it was busy",)), fit]
        saved = experiment.save()
    assert saved.file.findings == (
        "In 1 of 3 loads the client was not fit to measure, first because it was busy.",
    )


async def test_equal_seeds_visit_in_equal_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, str(tmp_path))
    orders = []
    for seed in (1, 1, 2):
        seen: list[str] = []

        async def visit(visit: Visit, seen: list[str] = seen) -> list[RequestRecord]:
            seen.append(visit.arm)
            return []

        await Lab(EXPERIMENT, namespace(seed=seed)).compare(dict.fromkeys("abcd", visit), pairs=8)
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == 32


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("absent", None, "has no model 'absent'; it has scripted:latest"),
        ("scripted", ServerSettings(num_parallel=4), "its settings stay as they are"),
    ],
)
async def test_a_subject_that_cannot_be_had_is_refused_with_the_next_step(
    experiment: Lab, model: str, settings: ServerSettings | None, message: str
) -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        with pytest.raises(TargetError, match=message):
            await experiment.subject(server.url, model, settings)
    assert experiment.report.server == {}


async def test_a_server_at_a_url_is_measured_as_it_is_and_the_arms_are_not_run(experiment: Lab) -> None:
    """Nothing of it can be set, so nothing is said about settings: not in a table, not about a claim."""
    arms = {"1 slot": ServerSettings(num_parallel=1), "4 slots": ServerSettings(num_parallel=4)}
    async with ScriptedServer(Script(**QUICK)) as server, ScriptedServer(Script(**QUICK)) as other:
        subjects = await experiment.subjects(server.url, "scripted", arms, others=["not there"])
        alone = subjects[lab.AS_IT_IS]
        assert list(subjects) == [lab.AS_IT_IS]
        assert alone.slots is None
        subjects["other"] = await experiment.subject(other.url, "scripted", name="other")
        visitors = {
            name: subject.loads(LoadSettings(requests=1), SHAPE) for name, subject in subjects.items()
        }
        trials = await experiment.compare(visitors, pairs=8)
        contrast = trials.contrast(E2E, MEAN_E2E, arm="4 slots", baseline="1 slot", is_primary=True)
        experiment.settle("C12", contrast, alone)
        seen = lab.observe_decoding(trials, {lab.AS_IT_IS: alone}, [])
        experiment.observe("C17", seen, alone)
        launched = await lab.launch_fresh(alone, SHAPE, file=None, starts=2)
        experiment.report.add_table(lab.staged_table("staged", "Stages", trials))
        saved = experiment.save()
    reason = f"{server.url} was not started by ollamalab"
    assert launched.starts == ()
    assert set(launched.not_run) == {lab.FRESH, lab.FROM_DISK}
    assert contrast.reason.startswith(f"not run: {reason}")
    assert [arm.name for arm in saved.file.arms if arm.not_run] == ["1 slot", "4 slots"]
    assert [row[0] for row in saved.tables["staged"].rows] == [lab.AS_IT_IS, "other", "1 slot", "4 slots"]
    assert {contrast.claim for contrast in saved.verdicts} == {"C12", "C17"}
    for claim in saved.verdicts:
        assert claim.observed is not None
        assert claim.observed.word is ClaimWord.NOT_TESTABLE
    write_manifest(saved.folder, manifest_of(experiment))
    assert f"<b>4 slots</b>: {reason}" in write_report(saved.folder).read_text()


async def test_where_the_server_keeps_the_model_nothing_that_needs_an_unload_is_run(
    experiment: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripted server lists its model for ever."""
    monkeypatch.setattr(lab_subject, "_UNLOAD_DEADLINE_S", 0.0)
    async with ScriptedServer(Script(**QUICK)) as server:
        subject = await experiment.subject(server.url, "scripted")
        await experiment.skip_unless_unloaded(subject, "cold", "preloaded")
        trials = await experiment.compare(
            {
                "cold": subject.first_request(SHAPE, is_preloaded=False),
                "preloaded": subject.first_request(SHAPE, is_preloaded=True),
            },
            pairs=8,
        )
        pings = await lab.observe_pings(subject, every_s=0.1, pings=2, not_run=experiment.not_run.get("cold"))
        experiment.observe("C07", pings, subject)
    saving = trials.contrast(E2E, MEAN_E2E, arm="preloaded", baseline="cold", is_primary=True)
    assert trials.records == ()
    assert "does another client use it?" in saving.reason
    assert pings.holds is None
    assert "does another client use it?" in pings.evidence


async def test_a_server_alone_is_warmed_up_once_and_never_unloaded(experiment: Lab) -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        subject = await experiment.subject(server.url, "scripted")
        trials = await experiment.compare_reloaded({lab.AS_IT_IS: subject}, SHAPE, launches=3)
    assert len(trials.of(lab.AS_IT_IS)) == 3


async def test_a_variable_that_the_server_ignores_is_noted_in_the_report(
    experiment: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left over in a shell, for an older Ollama: nobody asked for it, but a reader should know."""
    ollama = tmp_path / "ollama"
    ollama.write_text(f"#!/bin/sh\nexec {sys.executable} {ollama_standin.__file__}\n")
    ollama.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("OLLAMA_MAX_VRAM", "1")
    await experiment.subject("ollama", "smollm2:135m")
    (note,) = experiment.save().file.notes
    assert note.startswith("OLLAMA_MAX_VRAM is set and does nothing: gone")


async def test_a_second_model_that_is_missing_is_told_when_the_server_is_opened(experiment: Lab) -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        with pytest.raises(TargetError, match="has no model 'absent'"):
            await experiment.subject(server.url, "scripted", others=["absent"])


async def test_a_claim_without_a_number_says_which_direction_it_claims(experiment: Lab) -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        subject = await experiment.subject(server.url, "scripted")
        faster = compared(E2E, [(1.0, 2.0)] * 8)
        with pytest.raises(ValueError, match="C16 has no number"):
            experiment.settle("C16", faster, subject)
        experiment.settle("C16", faster, subject, claimed="lower")
        assert experiment.save().verdicts[0].claimed == "lower"


async def test_gpu_samples_of_a_run_may_come_from_elsewhere(experiment: Lab, tmp_path: Path) -> None:
    """Such as the monitor of a remote host; here a recording."""
    with experiment.watch(gpus=str(recording(tmp_path / "a.samples.parquet"))) as sampling:
        pass
    experiment.keep(sampling)
    found = set(experiment.save().samples["source"])
    assert {"host", "gpu0"} == {source for source in found if not source.startswith("sampling")}
