"""An experiment from its parameters to what is read back from the disk, on a scripted server."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_samples import E2E

from ollamalab import lab
from ollamalab.compare import ClaimWord, Visit
from ollamalab.errors import TargetError
from ollamalab.lab import Lab, PromptShape, mean_of
from ollamalab.loadgen import LoadSettings
from ollamalab.metrics import e2e_final_line_s
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import RUN_VARIABLE, root
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import ServerSettings

EXPERIMENT = "07_parallel_slots"
SHAPE = PromptShape(prompt_tokens=64, num_predict=3)
QUICK: dict[str, Any] = {"first_s": 0.002, "gap_s": 0.001, "tokens": 3}


def namespace(**values: Any) -> dict[str, Any]:
    """Return a notebook's globals: its parameters as they stand in it, and more."""
    notebook = json.loads((root() / "notebooks" / f"{EXPERIMENT}.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    found: dict[str, Any] = {}
    exec("".join(cell["source"]), found)  # its own annotated literals
    return found | {"unrelated": object()} | values


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
    assert experiment.parameters["slots"] == [1, 2, 4, 8]
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
        experiment.observe("C17", holds=False, evidence="two at once", subject=subjects["fast"], n=16)
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
    assert {"host"} <= set(saved.samples["source"])
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
