"""What a batch will need is worked out before it starts: time, models, disk, and who uses the host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ollama_standin import serving
from tiny_lab import add_notebook, add_parameters

from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
from ollamalab.errors import SettingsError
from ollamalab.gpu import GpuProcess
from ollamalab.metrics.summary import least_samples
from ollamalab.report import root
from ollamalab.runner import discover, make_plan
from ollamalab.runner.estimate import CPU, GPU, Estimate, estimate, quantities, total
from ollamalab.runner.expressions import evaluate
from ollamalab.runner.inventory import Room, known_bytes, look_up, room
from ollamalab.runner.needs import Need, model_size, needs_of
from ollamalab.runner.traffic import gpu_signs, loaded_sign, look_for_traffic, usual_server

CELL = """
target: str = "embedded"
model: str = "smollm2:135m"
other_model: str = ""
prompt_tokens: int = 100
num_predict: int = 10
pairs: int = 4
slots: list[int] = [1, 2]
"""

# Sums


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6", 6),
        ("2 + 3 * n", 14),
        ("(2 + 3) * n / 2 - 1", 9),
        ("len(slots) * max(n, 5) + min(1, 2)", 16),
        ("ceil(n / 3)", 2),
    ],
)
def test_a_sum_is_worked_out(text: str, value: float) -> None:
    assert evaluate(text, {"n": 4, "slots": [1, 2, 3]}, "x") == value


@pytest.mark.parametrize(
    "text",
    ["", "m", "n +", "n / 0", "len(n)", "slots", "n ** 9", "__import__('os')", "n.real", "[n]", "open(n)"],
)
def test_what_is_no_sum_is_refused_in_one_line(text: str) -> None:
    """Also what Python could evaluate: a notebook's metadata is data."""
    with pytest.raises(SettingsError, match=r"^02_x\.ipynb: cannot evaluate") as raised:
        evaluate(text, {"n": 4, "slots": [1]}, "02_x.ipynb")
    assert "\n" not in str(raised.value)


# Models and their sizes


@pytest.mark.parametrize(
    ("name", "parameters", "gigabytes"),
    [
        ("qwen2.5:7b", 7e9, 4.34),
        ("llama3.1:70b-instruct-q8_0", 70e9, 74.2),
        ("synthetic:32b-q4_0", 32e9, 18.56),
        ("smollm2:135m-f16", 135e6, 0.27),
        ("mixtral:latest", None, None),
        ("phi3.5", None, None),
    ],
)
def test_a_models_size_is_told_by_its_name(
    name: str, parameters: float | None, gigabytes: float | None
) -> None:
    size = model_size(name)
    assert (size and size.parameters) == parameters
    assert (size and size.size_bytes / 1e9) == (gigabytes and pytest.approx(gigabytes))


def test_a_file_that_is_there_tells_its_size_itself() -> None:
    size = model_size("qwen2.5:7b", 4.7e9)
    assert size is not None
    assert (size.parameters, size.size_bytes) == (7e9, 4.7e9)
    unnamed = model_size("mine", 6.2e9)
    assert unnamed is not None
    assert unnamed.parameters == pytest.approx(1e10)


def test_every_model_is_needed_on_every_target_once(tmp_path: Path) -> None:
    add_notebook(tmp_path, "02_cold_start", parameters=CELL)
    add_notebook(
        tmp_path, "07_slots", parameters='target: str = "x"\nmodels: list[str] = ["a"]\nreference: str = "y"'
    )
    add_notebook(tmp_path, "15_report", parameters='run_name: str = ""')
    options = ["target=ollama", "other_model=b", "model=a", "reference=http://gpu2:11434"]
    assert needs_of(make_plan(tmp_path, options=options).tasks) == [
        Need(target="http://gpu2:11434", model="a"),
        Need(target="ollama", model="a"),
        Need(target="ollama", model="b"),
    ]


# Time


def test_a_default_run_takes_what_was_measured(tmp_path: Path) -> None:
    add_notebook(tmp_path, "02_cold_start", parameters=CELL, minutes=0.5, estimate_s="1000")
    (task,) = make_plan(tmp_path).tasks
    assert estimate(task, {}) == Estimate(seconds=30, basis="measured")


def test_another_run_takes_what_its_notebook_declares(tmp_path: Path) -> None:
    """The speeds are the target's; the size is that of the largest model, from the disk where it is there."""
    add_notebook(tmp_path, "02_cold_start", parameters=CELL, estimate_s="pairs * (load_s + request_s)")
    options = ["target=ollama", "model=qwen2.5:7b", "other_model=qwen2.5:14b"]
    (task,) = make_plan(tmp_path, options=options).tasks
    load_s = GPU.start_s + 9e9 / GPU.load_bytes_per_s
    request_s = 100 * 2 * 14e9 / GPU.prefill_flops + 10 * 9e9 / GPU.decode_bytes_per_s
    found = estimate(task, {"qwen2.5:14b": 9e9})
    assert found == Estimate(seconds=pytest.approx(4 * (load_s + request_s)), basis="estimated")


def test_speeds_of_the_embedded_server_are_those_of_a_cpu() -> None:
    """SmolLM2-135M there: 100-140 tokens/s, 240-350 prompt tokens/s, loads in about half a second."""
    parameters = {"target": "embedded", "model": "smollm2:135m"}
    sizes = {"smollm2:135m": 98e6}
    decode = quantities({**parameters, "num_predict": 1}, sizes)
    prefill = quantities({**parameters, "prompt_tokens": 1}, sizes)
    assert 100 < 1 / decode["request_s"] < 140
    assert 240 < 1 / prefill["request_s"] < 350
    assert decode["load_s"] == pytest.approx(0.6, abs=0.1)
    assert decode["batch"] == CPU.batch


def test_who_declares_nothing_gives_no_time_and_no_total(tmp_path: Path) -> None:
    add_notebook(tmp_path, "02_cold_start", parameters=CELL)
    add_notebook(tmp_path, "07_slots", minutes=1)
    plan = make_plan(tmp_path, options=["pairs=5"])
    assert estimate(plan.tasks[0], {}).seconds is None
    assert total(plan, {}) == Estimate(seconds=None, basis="estimated")
    assert total(make_plan(tmp_path), {}) == Estimate(seconds=66, basis="measured")


def test_a_wrong_sum_names_its_notebook(tmp_path: Path) -> None:
    add_notebook(tmp_path, "02_cold_start", parameters=CELL, estimate_s="pears * 2")
    (task,) = make_plan(tmp_path, options=["pairs=5"]).tasks
    with pytest.raises(SettingsError, match=r"02_cold_start\.ipynb, metadata ollamalab\.estimate_s.*'pears'"):
        estimate(task, {})


def test_every_notebook_declares_a_sum_that_fits_its_measured_run() -> None:
    """Within a factor of two at the defaults, so that the sum means something elsewhere."""
    sizes = {"smollm2:135m": 98e6, "smollm2:135m-q8_0": 145e6}
    for notebook in discover(root()):
        defaults = {name: parameter.default for name, parameter in notebook.parameters.items()}
        names = defaults | quantities(defaults, sizes)
        seconds = evaluate(notebook.header.estimate_s, names, notebook.name)
        assert notebook.header.minutes is not None
        assert 0.5 <= seconds / (60 * notebook.header.minutes) <= 2, notebook.name


# Profiles


@pytest.mark.parametrize("profile", ["gpu", "cluster"])
def test_a_profile_covers_every_notebook_within_its_budget(profile: str) -> None:
    """A time budget for each, which the estimate keeps with a margin; targets are real servers."""
    plan = make_plan(root(), profile=profile)
    assert {task.name for task in plan.tasks} == {
        path.stem for path in (root() / "params" / profile).glob("*.yaml")
    }
    for task in plan.tasks:
        found = estimate(task, {})
        assert task.budget_minutes is not None, task.name
        assert found.seconds is not None
        assert found.seconds * 1.3 <= task.budget_minutes * 60, task.name
        assert task.parameters.get("target") in ("ollama", None)


@pytest.mark.parametrize("profile", ["gpu", "cluster"])
def test_a_profile_repeats_often_enough_for_its_percentiles(profile: str) -> None:
    """p99 of several clients and of each number of slots; pairs for a verdict with a margin."""
    parameters = make_plan(root(), profile=profile).parameters
    assert parameters["01_host_inventory"]["requests"] >= least_samples(0.99)
    assert parameters["01_host_inventory"]["single_requests"] >= least_samples(0.95)
    slots = parameters["07_parallel_slots"]
    assert slots["pairs"] * slots["requests"] >= least_samples(0.99)
    assert slots["pairs"] >= 24
    assert parameters["02_cold_start"]["pairs"] >= 24


# What is there


def test_the_embedded_servers_models_are_looked_up_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the run makes itself, those that a command makes, and those that nobody can."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = ModelStore().folder
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "1.gguf").write_bytes(b"not even a model")
    names = ["mine:1", DEFAULT_MODEL, "smollm2:135m-f16", "synthetic:7b-q4_0", "other:1"]
    mine, fetched, derived, synthetic, other = look_up(
        [Need(target="embedded", model=name) for name in names], {}
    )
    assert (mine.is_there, mine.size_bytes, mine.note) == (True, 16, "")
    assert "fetched on first use" in fetched.note
    assert "derived as f16 on first use" in derived.note
    assert synthetic.note == "ollamalab models synth --shape 7b --quant q4_0"
    assert (other.is_there, other.size_bytes) == (False, None)
    (needed,) = room([mine, fetched, derived, synthetic, other])
    assert needed.folder == folder
    assert needed.missing_bytes == pytest.approx(98e6 + 270e6 + 4.06e9)
    assert known_bytes([mine, other]) == {"mine:1": 16}


def test_ollamas_models_are_read_from_its_manifests(tmp_path: Path) -> None:
    """No server has to run; without a manifest its size is told by its name."""
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "qwen2.5" / "7b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": [{"size": 4_000_000_000}, {"size": 500}]}))
    needs = [Need(target="ollama", model=name) for name in ("qwen2.5:7b", "llama3.1:8b")]
    there, missing = look_up(needs, {"OLLAMA_MODELS": str(tmp_path)})
    assert (there.is_there, there.size_bytes) == (True, 4_000_000_500)
    assert (missing.is_there, missing.folder) == (False, tmp_path)
    assert missing.note.endswith("ollama pull llama3.1:8b")


def test_a_servers_models_are_asked_of_it() -> None:
    listing = {"/api/tags": {"models": [{"name": "Qwen2.5:7b", "size": 47}]}}
    with serving(listing) as url, serving({"/api/tags": ["?"]}) as strange:
        needs = [Need(target=url, model="qwen2.5:7b"), Need(target=url, model="llama3.1:8b")]
        there, missing = look_up(needs, {})
        (odd,) = look_up([Need(target=strange, model="m")], {})
        (gone,) = look_up([replace(needs[0], target="http://127.0.0.1:1")], {})
    assert (there.is_there, there.size_bytes) == (True, 47)
    assert (missing.is_there, missing.folder) == (False, None)
    assert odd.is_there is gone.is_there is None
    assert "does not list models" in odd.note
    assert "cannot connect" in gone.note
    with pytest.raises(SettingsError, match="did you mean ollama"):
        look_up([Need(target="olama", model="m")], {})


def test_a_disk_that_is_too_small_is_told_apart(tmp_path: Path) -> None:
    fits = Room(folder=tmp_path, missing_bytes=5e9, free_bytes=6e9)
    assert fits.fits
    assert not replace(fits, free_bytes=4e9).fits


# Who uses the host


def test_a_loaded_model_is_a_sign_of_traffic() -> None:
    model = {"name": "llama3:8b", "size": 6_100_000_000, "expires_at": "2026-11-21T10:05:00.123Z"}
    assert loaded_sign("http://a:1", [model]) == (
        "http://a:1 has loaded llama3:8b (6.1 GB, kept until 2026-11-21T10:05:00)"
    )
    assert loaded_sign("http://a:1", []) is None


def test_processes_on_a_gpu_are_signs_and_so_is_a_busy_gpu_whose_processes_do_not_show() -> None:
    """A container does not see the others' processes; their memory and their load it sees."""
    process = GpuProcess(source="gpu0", pid=7, name="python", memory_bytes=12_300_000_000)
    hidden = GpuProcess(source="gpu0", pid=8, name=None, memory_bytes=None)
    values = {
        "gpu0": {"sm_utilisation_ratio": 0.9, "memory_used_bytes": 5e10},
        "gpu1": {"sm_utilisation_ratio": 0.5, "memory_used_bytes": 2.13e10},
        "gpu2": {"sm_utilisation_ratio": 0.0, "memory_used_bytes": 4e8},
        "gpu3": {"sm_utilisation_ratio": None, "memory_used_bytes": None},
    }
    assert gpu_signs([process, hidden], values) == [
        "gpu0: process 7 (python) computes and holds 12.3 GB",
        "gpu0: process 8 (name unknown) computes",
        "gpu1: 50% busy, 21.3 GB used, by processes that do not show here",
    ]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:8080", "http://[::1]:8080"),
        ("gpu2:9999", "http://gpu2:9999"),
        ("not a host", "http://127.0.0.1:11434"),
    ],
)
def test_the_usual_server_is_the_one_that_clients_ask(host: str, url: str) -> None:
    assert usual_server({"OLLAMA_HOST": host}) == url


def test_targets_are_asked_too_and_silent_ones_give_no_sign() -> None:
    with serving({"/api/ps": {"models": [{"name": "m:1"}]}}) as busy, serving({}) as mute:
        signs = look_for_traffic([busy, mute, "ollama", "embedded"], {"OLLAMA_HOST": "127.0.0.1:1"})
    assert [sign for sign in signs if sign.startswith("http")] == [
        f"{busy} has loaded m:1 (0.0 GB, kept until n/a)"
    ]


def test_a_budget_stands_in_a_comment_that_papermill_does_not_see(tmp_path: Path) -> None:
    add_notebook(tmp_path, "02_cold_start", parameters=CELL)
    add_notebook(tmp_path, "07_slots")
    add_parameters(tmp_path, "gpu", "02_cold_start", "# Budget: 2.5 min on a GPU\npairs: 5\n")
    tasks = {task.name: task.budget_minutes for task in make_plan(tmp_path, profile="gpu").tasks}
    assert tasks == {"02_cold_start": 2.5, "07_slots": None}
