"""What a guide's settings really are: found by the doctor's rules, in Ollama's own words, or tried."""

from __future__ import annotations

import pytest

from ollamalab import lab
from ollamalab.embedded.models import DEFAULT_MODEL
from ollamalab.lab.guide import GUIDE, CudaLoad, doctor_says, overhead_seen
from ollamalab.settings.variables import GONE, NAMED_AT_START

HELP = """
Environment Variables:
      OLLAMA_FLASH_ATTENTION     Enabled flash attention
      OLLAMA_GPU_OVERHEAD        Reserve a portion of VRAM per GPU (bytes)
"""
LOG = 'level=INFO msg="gpu memory" id=GPU-1 library=CUDA minimum="457.0 MiB" overhead="{}"\n'
ONE_GPU = {"gpus": [{"name": "a GPU"}], "reason": None}


def load(*, is_first: bool, load_s: float, compiled_mb: int = 0, is_on_gpu: bool = True) -> CudaLoad:
    return CudaLoad(
        is_first=is_first, load_s=load_s, compiled_bytes=compiled_mb * 1_000_000, is_on_gpu=is_on_gpu
    )


def test_every_published_setting_says_what_it_is() -> None:
    """Each is a variable that there is; units and defaults are found by code, the rest is written down."""
    table = lab.guide_table()
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == [item.setting for item in GUIDE]
    assert {item.setting.partition("=")[0] for item in GUIDE} <= NAMED_AT_START
    assert all(row[4] for row in table.rows)
    kinds = {setting: row[3] for setting, row in rows.items()}
    assert kinds["OLLAMA_GPU_OVERHEAD=2048"] == kinds["OLLAMA_GPU_OVERHEAD=4096"] == "other unit"
    assert [setting for setting, kind in kinds.items() if kind == "is the default"] == [
        "OLLAMA_NUM_PARALLEL=1"
    ]
    assert "2 KiB: the unit is bytes" in str(rows["OLLAMA_GPU_OVERHEAD=2048"][4])


def test_the_doctor_is_asked_about_one_variable_alone() -> None:
    assert doctor_says("OLLAMA_KEEP_ALIVE=24h") == ()
    assert [found.rule for found in doctor_says("OLLAMA_NUM_GPU=99")] == ["unknown-variable"]
    assert [found.rule for found in doctor_says("OLLAMA_GPU_OVERHEAD=2048")] == ["wrong-unit"]


def test_dead_variables_are_those_of_old_guides_and_those_set_here() -> None:
    table = lab.dead_table(target="ollama", ignored={"OLLAMA_FOO": "no such variable"})
    assert [row[0] for row in table.rows] == [*GONE, "OLLAMA_FOO"]
    assert table.rows[-1][1:] == ("set here, for ollama", "no such variable")


@pytest.mark.parametrize(
    ("log", "help_text", "holds", "words"),
    [
        (LOG.format("2.0 KiB"), HELP, False, 'logs overhead="2.0 KiB"'),
        (LOG.format("2.0 GiB"), HELP, True, 'logs overhead="2.0 GiB"'),
        ("", HELP, False, "per GPU (bytes)"),
        ("", "no such line", None, "neither"),
    ],
)
def test_the_unit_is_the_one_that_ollama_names(
    log: str, help_text: str, holds: bool | None, words: str
) -> None:
    """Its log of a load comes before its help: that is what it does."""
    seen = overhead_seen(help_text, log)
    assert seen.holds is holds
    assert words in seen.evidence


async def test_a_unit_that_was_only_read_is_not_refuted() -> None:
    seen = await lab.observe_overhead("embedded", DEFAULT_MODEL)
    assert seen.holds is None
    assert "the target is embedded" in seen.evidence
    assert "the unit is bytes" in seen.evidence


async def test_without_a_gpu_nothing_is_loaded_to_see_it_compile() -> None:
    none = {"gpus": [], "reason": "no GPU: no driver"}
    seen = await lab.observe_compiling("embedded", DEFAULT_MODEL, starts=1, gpus=none)
    assert (seen.holds, seen.evidence, seen.n) == (None, "no GPU: no driver", 0)
    seen = await lab.observe_compiling("http://x", "m", starts=1, gpus=ONE_GPU, not_run="not ours")
    assert (seen.holds, seen.evidence) == (None, "not ours")


async def test_a_server_that_leaves_the_gpu_alone_cannot_tell() -> None:
    """Fresh servers with a cache folder of their own, on a machine whose engine runs on the CPU."""
    await lab.have_models("embedded", DEFAULT_MODEL)
    seen = await lab.observe_compiling("embedded", DEFAULT_MODEL, starts=1, gpus=ONE_GPU)
    assert (seen.holds, seen.evidence) == (None, "the server loads the model without the GPU")


@pytest.mark.parametrize(
    ("loads", "holds", "words"),
    [
        (
            [load(is_first=True, load_s=9, compiled_mb=80), load(is_first=False, load_s=1)],
            False,
            "with an empty cache of the driver's a load took 9.00 s and compiled 80.0 MB",
        ),
        ([load(is_first=True, load_s=1), load(is_first=False, load_s=1)], False, "compiled 0.0 MB"),
        (
            [load(is_first=True, load_s=9, compiled_mb=80), load(is_first=False, load_s=9, compiled_mb=80)],
            True,
            "with what that load left in it a load took 9.00 s and compiled 80.0 MB",
        ),
    ],
)
def test_only_an_ordinary_load_that_compiles_confirms_it(
    loads: list[CudaLoad], holds: bool, words: str
) -> None:
    """The first load ever is told beside it."""
    seen = lab.compiling_seen(loads)
    assert seen.holds is holds
    assert words in seen.evidence
    assert seen.n == 2
