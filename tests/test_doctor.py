"""Each rule: what it needs to see, what it says, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ollama_standin import free_url, serving

from ollamalab.doctor import RULES, Finding, Inventory, Unread, examine
from ollamalab.doctor.gathering import cache_bytes_per_token
from ollamalab.doctor.inventory import (
    DriverCache,
    Engine,
    LoadedNow,
    ServerProcess,
    Sighting,
    Streamed,
    document,
)
from ollamalab.doctor.processes import find_listener, is_local
from ollamalab.doctor.storage import driver_cache, read_speed

GIB = 2**30
UNREAD = Unread("for a test")
GPU = {"name": "NVIDIA H200", "memory_bytes": 140 * GIB, "is_persistent": True}
CACHE = DriverCache(folder="/home/ann/.nv/ComputeCache", is_off=False, size_bytes=50_000_000)
NOTHING = Inventory(
    url="http://127.0.0.1:11434",
    host={},
    gpus={"gpus": [GPU], "reason": None},
    version="0.33.0",
    models=UNREAD,
    loaded=UNREAD,
    watch=UNREAD,
    process=UNREAD,
    engines=UNREAD,
    disk=UNREAD,
    driver_cache=UNREAD,
    streamed=UNREAD,
)


def environment(**variables: str) -> Inventory:
    return replace(NOTHING, process=ServerProcess(pid=1, name="ollama", environment=variables))


def engine(**facts: Any) -> Engine:
    return Engine(**{"model_file": None, "model": "m", "slots": 1, "context_tokens": 4096, **facts})


def loaded(**facts: Any) -> LoadedNow:
    usual = {
        "name": "m",
        "size_bytes": 8 * GIB,
        "size_vram_bytes": 8 * GIB,
        "context_tokens": 4096,
        "expires_in_s": 300.0,
        "cache_bytes_per_token": 131072,
        "engine": engine(),
    }
    return LoadedNow(**{**usual, **facts})


def only(inventory: Inventory, rule: str) -> Finding:
    (finding,) = examine(inventory)
    assert finding.rule == rule
    assert all((finding.evidence, finding.consequence, finding.fix))
    return finding


def test_what_cannot_be_read_gives_no_finding() -> None:
    assert examine(NOTHING) == ()
    for name in vars(NOTHING):
        if isinstance(getattr(NOTHING, name), Unread):
            told = document(NOTHING, ())["inventory"][name]
            assert told == {"not_readable": "for a test"}


def test_a_host_that_is_well_gives_no_finding() -> None:
    well = replace(
        environment(
            OLLAMA_KEEP_ALIVE="24h", OLLAMA_NUM_PARALLEL="4", OLLAMA_FLASH_ATTENTION="1", PATH="/bin"
        ),
        loaded=(loaded(engine=engine(slots=4, libraries=("cuda_v13",))),),
        engines=(engine(slots=4, libraries=("cuda_v13",)),),
        driver_cache=CACHE,
        streamed=Streamed(model="m", lines=48, arrivals_s=0.9, eval_s=1.0),
        watch=(Sighting(at_s=0, contexts={"m": 4096}), Sighting(at_s=3, contexts={"m": 4096})),
    )
    assert examine(well) == ()
    assert len(RULES) == 11


@pytest.mark.parametrize(
    ("variables", "evidence", "fix"),
    [
        (
            {"OLLAMA_GPU_OVERHEAD": "2048"},
            "OLLAMA_GPU_OVERHEAD=2048 is 2 KiB",
            "OLLAMA_GPU_OVERHEAD=2147483648",
        ),
        ({"OLLAMA_GPU_OVERHEAD": '"512"'}, "512 is 512 bytes", "LLAMA_ARG_FIT_TARGET=512"),
        ({"LLAMA_ARG_FIT_TARGET": "2147483648"}, "is 2048 TiB", "LLAMA_ARG_FIT_TARGET=2048"),
        ({"OLLAMA_KEEP_ALIVE": "24"}, "is 24 seconds", "24h"),
    ],
)
def test_a_mistaken_unit_is_told_with_what_it_means(
    variables: dict[str, str], evidence: str, fix: str
) -> None:
    finding = only(environment(**variables), "wrong-unit")
    assert evidence in finding.evidence
    assert fix in finding.fix


@pytest.mark.parametrize(
    "variables",
    [
        {"OLLAMA_GPU_OVERHEAD": "0"},
        {"OLLAMA_GPU_OVERHEAD": "2147483648"},
        {"LLAMA_ARG_FIT_TARGET": "2048"},
        {"OLLAMA_KEEP_ALIVE": "3600"},
        {"OLLAMA_KEEP_ALIVE": "-1"},
    ],
)
def test_numbers_in_the_right_unit_are_left_alone(variables: dict[str, str]) -> None:
    assert examine(environment(**variables)) == ()


@pytest.mark.parametrize(
    ("variables", "consequence"),
    [
        ({"OLLAMA_NUM_PARALLEL": "four"}, "its default"),
        ({"OLLAMA_GPU_OVERHEAD": "2GB"}, "its default"),
        ({"OLLAMA_KEEP_ALIVE": "1d"}, "its default of 5m"),
        ({"OLLAMA_FLASH_ATTENTION": "off"}, "takes it for true"),
    ],
)
def test_a_value_that_ollama_cannot_read_is_told(variables: dict[str, str], consequence: str) -> None:
    assert consequence in only(environment(**variables), "unreadable-value").consequence


def test_a_variable_that_is_gone_or_never_was_does_nothing() -> None:
    assert "gone since Ollama 0.30" in only(environment(OLLAMA_NEW_ENGINE="1"), "unknown-variable").fix
    assert "option num_gpu" in only(environment(OLLAMA_NUM_GPU="99"), "unknown-variable").fix
    typo = only(environment(OLLAMA_KEEPALIVE="24h"), "unknown-variable")
    assert "OLLAMA_KEEP_ALIVE may have been meant" in typo.fix


@pytest.mark.parametrize("version", ["0.29.0", "0.34.0", "1.0.0"])
def test_a_version_that_the_table_does_not_cover_may_know_more(version: str) -> None:
    assert examine(replace(environment(OLLAMA_SPEED="9"), version=version)) == ()


def test_a_model_that_is_partly_on_the_cpu_is_told_by_its_bytes() -> None:
    finding = only(replace(NOTHING, loaded=(loaded(size_vram_bytes=6 * GIB),)), "partly-on-cpu")
    assert "6.0 GiB of 8.0 GiB are on the GPU (75%)" in finding.evidence


def test_all_on_the_cpu_is_a_fault_only_where_there_is_a_gpu() -> None:
    on_cpu = replace(NOTHING, loaded=(loaded(size_vram_bytes=0),))
    only(on_cpu, "partly-on-cpu")
    assert examine(replace(on_cpu, gpus={"gpus": [], "reason": "none"})) == ()
    assert examine(replace(on_cpu, is_local=False)) == ()


def test_a_context_that_is_large_and_hardly_used_is_told_by_what_was_used() -> None:
    used = engine(slots=4, prompt_tokens=900, answer_tokens=100)
    finding = only(replace(NOTHING, loaded=(loaded(context_tokens=32768, engine=used),)), "large-context")
    assert "could use 1000 (prompt 900, answer 100)" in finding.evidence
    assert "16.0 GiB at f16" in finding.consequence
    assert "num_ctx=2048" in finding.fix


@pytest.mark.parametrize(
    "facts",
    [
        {"engine": engine(prompt_tokens=None, answer_tokens=None)},
        {"engine": engine(prompt_tokens=100, answer_tokens=None)},
        {"engine": engine(prompt_tokens=5000, answer_tokens=100)},
        {"engine": engine(prompt_tokens=100, answer_tokens=100), "cache_bytes_per_token": None},
        {"engine": engine(prompt_tokens=100, answer_tokens=100), "context_tokens": 4096},
        {"engine": None},
    ],
    ids=["no request yet", "open end", "used", "cost unknown", "cheap", "no engine seen"],
)
def test_a_context_is_left_alone_if_its_use_or_cost_is_not_known_or_small(facts: dict[str, Any]) -> None:
    assert examine(replace(NOTHING, loaded=(loaded(**{"context_tokens": 32768, **facts}),))) == ()


@pytest.mark.parametrize("text", ["0", "10s"])
def test_a_keep_alive_of_seconds_unloads_between_requests(text: str) -> None:
    assert (
        f"OLLAMA_KEEP_ALIVE={text}" in only(environment(OLLAMA_KEEP_ALIVE=text), "short-keep-alive").evidence
    )


def watched(*contexts: Mapping[str, int | None]) -> Inventory:
    sightings = tuple(Sighting(at_s=float(second), contexts=seen) for second, seen in enumerate(contexts))
    return replace(NOTHING, watch=sightings)


def test_a_model_that_comes_and_goes_was_unloaded_between_requests() -> None:
    finding = only(watched({"m": 4096}, {}, {"m": 4096}, {}), "unloaded-between-requests")
    assert finding.evidence == "m was loaded 2 times in 3 s of watching"


def test_a_model_that_is_loaded_once_or_only_goes_is_left_alone() -> None:
    assert examine(watched({}, {"m": 4096}, {"m": 4096})) == ()
    assert examine(watched({"m": 4096}, {})) == ()


def test_a_context_that_changes_back_and_forth_is_told_in_order() -> None:
    finding = only(watched({"m": 2048}, {"m": 8192}, {"m": 2048}), "context-thrash")
    assert "2048, then 8192, then 2048 tokens" in finding.evidence
    assert "OLLAMA_CONTEXT_LENGTH=8192" in finding.fix


def test_slots_that_were_asked_for_and_not_given_are_told() -> None:
    asked = environment(OLLAMA_NUM_PARALLEL="4")
    assert "the engine of m has 1 slot" in only(replace(asked, loaded=(loaded(),)), "one-slot").evidence
    assert examine(replace(asked, loaded=(loaded(engine=engine(slots=4)),))) == ()
    assert examine(replace(asked, loaded=(loaded(engine=None),))) == ()
    assert "It means 1" in only(environment(OLLAMA_NUM_PARALLEL="0"), "one-slot").consequence


def test_code_that_the_driver_must_compile_again_is_told() -> None:
    ptx = replace(NOTHING, engines=(engine(libraries=("cuda_v13",)),))
    empty = replace(CACHE, size_bytes=0)
    assert "empty or missing" in only(replace(ptx, driver_cache=empty), "ptx-only").evidence
    assert "turned off" in only(replace(ptx, driver_cache=replace(CACHE, is_off=True)), "ptx-only").evidence
    assert examine(replace(ptx, driver_cache=CACHE)) == ()
    compiled = replace(NOTHING, engines=(engine(libraries=("cuda_v12",)),), driver_cache=empty)
    assert examine(compiled) == ()


def test_a_driver_that_is_unloaded_when_idle_is_told_by_gpu() -> None:
    gpus = {"gpus": [GPU, GPU | {"is_persistent": False}, GPU | {"is_persistent": None}], "reason": None}
    assert only(replace(NOTHING, gpus=gpus), "no-persistence").evidence.startswith("GPU 1 (NVIDIA H200)")


@pytest.mark.parametrize(
    ("lines", "arrivals_s", "eval_s", "is_held"),
    [(48, 0.002, 1.0, True), (48, 0.98, 1.0, False), (4, 0.0, 1.0, False), (48, 0.001, 0.02, False)],
    ids=["held", "flows", "too few lines to tell", "too short to tell"],
)
def test_a_stream_is_held_if_its_lines_arrive_together(
    lines: int, arrivals_s: float, eval_s: float, is_held: bool
) -> None:
    streamed = Streamed(model="m", lines=lines, arrivals_s=arrivals_s, eval_s=eval_s)
    found = examine(replace(NOTHING, streamed=streamed))
    assert [finding.rule for finding in found] == (["held-stream"] if is_held else [])


def test_variables_of_others_are_not_told() -> None:
    inventory = environment(OLLAMA_DEBUG="1", AWS_SECRET_ACCESS_KEY="x", CUDA_VISIBLE_DEVICES="0")
    assert document(inventory, ())["inventory"]["process"] == {
        "pid": 1,
        "name": "ollama",
        "environment": {"OLLAMA_DEBUG": "1", "CUDA_VISIBLE_DEVICES": "0"},
    }


def test_the_cache_of_a_token_is_layers_by_heads_by_lengths() -> None:
    llama = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.embedding_length": 4096,
    }
    assert cache_bytes_per_token(llama) == 32 * 8 * (128 + 128) * 2 == 131072
    assert cache_bytes_per_token(llama | {"llama.attention.key_length": 256}) == 32 * 8 * (256 + 128) * 2
    assert cache_bytes_per_token(llama | {"llama.attention.head_count_kv": None}) is None
    assert cache_bytes_per_token({}) is None


def test_a_disk_is_read_past_the_page_cache_or_the_reason_is_told(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(bytes(9 * 2**20))
    disk = read_speed(tmp_path, file)
    assert isinstance(disk, Unread) or disk.read_bytes_per_s > 0
    missing = read_speed(tmp_path, tmp_path / "none")
    assert isinstance(missing, Unread)
    assert "No such file" in missing.reason


def test_the_drivers_cache_is_where_the_servers_environment_says(tmp_path: Path) -> None:
    assert isinstance(driver_cache({}), Unread)
    empty = driver_cache({"HOME": str(tmp_path)})
    assert empty == DriverCache(folder=f"{tmp_path}/.nv/ComputeCache", is_off=False, size_bytes=0)
    (tmp_path / "code").write_bytes(bytes(7))
    chosen = driver_cache({"CUDA_CACHE_PATH": str(tmp_path), "CUDA_CACHE_DISABLE": "1"})
    assert chosen == DriverCache(folder=str(tmp_path), is_off=True, size_bytes=7)


def test_a_listener_that_is_not_ollama_is_not_taken_for_it() -> None:
    with serving({}) as url:
        listener = find_listener(url)
        assert isinstance(listener, Unread)
        assert "not Ollama" in listener.reason
    nobody = find_listener(free_url())
    assert isinstance(nobody, Unread)
    assert "no process of this machine listens" in nobody.reason


@pytest.mark.parametrize(
    ("url", "answer"),
    [("http://127.0.0.1:1", True), ("http://localhost:1", True), ("http://192.0.2.1:1", False)],
)
def test_an_address_is_this_machines_or_not(url: str, answer: bool) -> None:
    assert is_local(url) is answer
