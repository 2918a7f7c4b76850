"""Wherever a model with random weights is named, its name says so, once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from embedded_server import embedded_server
from lab_samples import E2E, compared

from ollamalab import lab
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
from ollamalab.embedded.shapes import SHAPES
from ollamalab.embedded.synth import Recipe, write_synthetic
from ollamalab.protocol.synthetic import is_synthetic, mark_mentions, mark_synthetic
from ollamalab.report import RUN_VARIABLE, Column, Table, new_manifest, root, write_manifest, write_report
from ollamalab.report.notebooks import read_notebook
from ollamalab.runner.parameters import parameters_of

EXPERIMENT = "07_parallel_slots"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"model_info": {"ollamalab.synthetic": True}}, True),
        ({"model_info": {"ollamalab.synthetic": False}}, False),
        ({"model_info": {"general.architecture": "qwen2"}}, False),
        ({"model_info": None}, False),
        ({}, False),
    ],
)
def test_a_model_is_synthetic_only_if_its_metadata_says_so(shown: dict[str, object], expected: bool) -> None:
    assert is_synthetic(shown) is expected


def test_a_name_that_says_it_itself_gets_no_second_mark() -> None:
    assert mark_synthetic("qwen2.5:7b") == "qwen2.5:7b (synthetic)"
    assert mark_synthetic("synthetic:7b-q4_0") == "synthetic:7b-q4_0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Latency of big:7b, 32 tokens", "Latency of big:7b (synthetic), 32 tokens"),
        ("big:7b on embedded", "big:7b (synthetic) on embedded"),
        ("measured on big:7b.", "measured on big:7b (synthetic)."),
        ("big:7b (synthetic) on embedded", "big:7b (synthetic) on embedded"),
        ("big:7b-q8_0 and other/big:7b and big:7b.1", "big:7b-q8_0 and other/big:7b and big:7b.1"),
        ("nothing to mark", "nothing to mark"),
    ],
)
def test_every_mention_in_a_text_is_marked(text: str, expected: str) -> None:
    """Longer names that contain it, and mentions that have the mark, stay."""
    assert mark_mentions(text, ["big:7b"]) == expected
    assert mark_mentions(mark_mentions(text, ["big:7b"]), ["big:7b"]) == expected


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """An embedded server with a model of random weights whose name does not say so; its URL."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(
        Recipe(shape=SHAPES["tiny"], quant="q4_0"),
        folder / "plain.gguf",
        tokenizer=ensure_model(DEFAULT_MODEL, ModelStore()).path,
    )
    async with embedded_server(folder, "--model", str(folder / "plain.gguf")) as server:
        yield server.url


async def test_an_experiment_marks_the_model_wherever_it_names_it(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table that a cell shows, in what is saved, and in the report; no other model."""
    run = tmp_path / "run"
    run.mkdir()
    manifest = new_manifest(
        "r",
        profile="quick",
        experiments={EXPERIMENT: "done"},
        parameters={EXPERIMENT: {}},
        checkout=root(),
    )
    monkeypatch.setenv(RUN_VARIABLE, str(run))
    parameters = parameters_of(read_notebook(root() / "notebooks" / f"{EXPERIMENT}.ipynb"), EXPERIMENT)
    opened = lab.Lab(EXPERIMENT, {name: parameter.default for name, parameter in parameters.items()})
    try:
        subject = await opened.subject(served, "plain", others=["tools"])
        assert subject.name == f"plain (synthetic) on {served}"
        shown = opened.report.add_table(
            Table.of("t", "Latency of plain, 8 tokens", [Column(name="Model")], [("plain",), ("tools",)])
        )
        assert shown.title == "Latency of plain (synthetic), 8 tokens"
        assert shown.rows == (("plain (synthetic)",), ("tools",))
        opened.settle("", compared(E2E, [(1.0, 2.0)]), subject)
        opened.report.add_finding("plain: 3 tokens/s.")
        saved = opened.save()
    finally:
        await opened.close()
    assert saved.file.findings[0].startswith("plain (synthetic) has random weights")
    assert "plain (synthetic): 3 tokens/s." in saved.file.findings
    assert saved.file.verdicts[0].target == f"plain (synthetic) on {served}"
    (models,) = [server["models"] for server in saved.file.server.values()]
    assert {model["name"] for model in models if model.get("synthetic")} == {"plain:latest"}
    write_manifest(run, replace(manifest, server=saved.file.server))
    html = write_report(run).read_text()
    assert "plain:latest (synthetic)" in html
    assert "smollm2:135m (synthetic)" not in html


async def test_bench_marks_the_model_too(served: str) -> None:
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ollamalab", "bench", served, "--model", "plain", "--requests", "2"),
        *("--num-predict", "2"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await bench.communicate()
    assert f"plain (synthetic) at {served}" in output.decode()
