"""What the monitor knows, shows and exposes; real servers of every kind are asked over real sockets."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import ollama_standin
import pytest
from embedded_server import EmbeddedServer
from gateway_service import HELLO, gateway
from gpu_machine import MACHINE, NAME, recording, told
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from raw_server import until
from rich.console import Console

from ollamalab import __version__
from ollamalab.errors import SamplerUnavailable, SettingsError
from ollamalab.gpu import EXPOSED, NoGpu, PrometheusSampler, ReplaySampler
from ollamalab.listening import bound_socket
from ollamalab.monitor import line, picture, serve_address, words
from ollamalab.monitor.board import STALE_S, Board, GpuState, fresh, merged
from ollamalab.monitor.exposition import Exposition
from ollamalab.monitor.server_state import ServerState, SlotLook, load_of_gateway, look_at_slots, tokens_per_s
from ollamalab.monitor.server_watch import ServerWatch
from ollamalab.monitor.serving import serving
from ollamalab.monitor.watching import Watching
from ollamalab.protocol.loaded import LoadedModel

MODEL = LoadedModel(
    name="llama3.2:3b",
    key="llama3.2:3b",
    expires_unix_s=1_000_272.0,
    size_bytes=4 << 30,
    size_vram_bytes=3 << 30,
    context_tokens=8192,
)
SERVER = ServerState(
    url="http://gpu2:11434",
    kind="gateway",
    version="0.1.0",
    models=(MODEL,),
    slots=4,
    busy=3,
    waiting=7,
    tokens_per_s=98.4,
)
HOST = {"cpu_ratio": 0.34, "memory_used_bytes": 5 << 30, "memory_available_bytes": 19 << 30, "load_1m": 2.1}


def board(
    *,
    server: ServerState | None = SERVER,
    values: Mapping[str, float | None] = MACHINE,
    notes: tuple[str, ...] = (),
) -> Board:
    return Board(
        now_s=50.0,
        unix_s=1_000_000.0,
        gpus={"gpu0": GpuState(name=NAME, values=values, read_s=49.0)} if values else {},
        host=HOST,
        server=server,
        notes=notes,
        cpu_ratio=0.012,
    )


def drawn(one: Board, *, page: str | None = None, width: int = 118) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(picture(one, page=page, width=width))
    return capture.get()


@pytest.mark.parametrize("width", [80, 118])
def test_the_picture_has_everything_that_is_known(width: int) -> None:
    text = " ".join(drawn(board(), page="http://127.0.0.1:9500/metrics", width=width).split("\n"))
    for words_ in (
        "http://gpu2:11434  gateway 0.1.0",
        f"gpu0: {NAME}",
        "85 %",
        "20.0/80.0 GiB",
        "412 W",
        "1980 MHz",
        "61 °C",
        "5.0 x16",
        "gpu0 is slowed by: software power cap",
        "llama3.2:3b",
        "75 % GPU",
        "8,192",
        "(4:32)",
        "3 at work (limit 4) · 7 waiting · 98 tokens/s",
        "CPU 34 % · memory 5.0 GiB of 24.0 GiB · load 2.10",
        "metrics at http://127.0.0.1:9500/metrics · costs 1.2% of a core",
    ):
        assert words_ in text


def test_the_line_has_the_most_important() -> None:
    text = line(board())
    assert "\n" not in text
    assert "gpu0 85 % 20.0/80.0 GiB 412 W 61 °C | llama3.2:3b until" in text
    assert "3 at work (limit 4) · 7 waiting · 98 tokens/s | CPU 34 %" in text


@pytest.mark.parametrize("show", [line, drawn])
def test_without_a_gpu_the_reason_stands_in_its_place(show: Callable[[Board], str]) -> None:
    reason = "no GPU: the NVIDIA driver is not loaded; what does `nvidia-smi` say?"
    assert reason in show(board(values={}, notes=(reason,)))
    assert "no GPU has answered yet" in show(board(values={}))


@pytest.mark.parametrize("show", [line, drawn])
def test_a_server_that_does_not_answer_is_said_to_be_asked_again(show: Callable[[Board], str]) -> None:
    lost = ServerState(
        url="http://gpu2:11434", trouble="cannot connect to http://gpu2:11434 (Connection refused)"
    )
    assert "(Connection refused); asked again and again" in " ".join(show(board(server=lost)).split())


@pytest.mark.parametrize("show", [line, drawn])
def test_what_is_not_known_is_said_so_and_never_zero(show: Callable[[Board], str]) -> None:
    plain = ServerState(url="http://gpu2:11434", kind="Ollama", version="0.33.0")
    text = show(board(server=plain, values=dict.fromkeys(MACHINE)))
    assert "slots, queue, tokens/s: Ollama does not tell" in text
    assert "no model in memory" in text
    assert "n/a" in text
    assert " 0 " not in text.replace(" 0 %", "")


def test_a_silent_gpu_is_not_shown_as_if_it_had_been_read() -> None:
    one = board()
    stale = Board(
        now_s=49.0 + STALE_S + 0.1,
        unix_s=one.unix_s,
        gpus=one.gpus,
        host={},
        server=None,
        notes=(),
        cpu_ratio=0.0,
    )
    assert fresh(one).keys() == {"gpu0"}
    assert fresh(stale) == {}
    assert "no GPU answers now" in line(stale)
    assert b"ollamalab_gpu_" not in Exposition(lambda: stale).page()[1]


def test_values_that_were_not_due_stay_as_they_were() -> None:
    first = merged({}, {"gpu0": {"energy_j": 1.0, "pcie_width": 16}}, {"gpu0": NAME}, 1.0)
    second = merged(first, {"gpu0": {"energy_j": 2.0}}, {"gpu0": NAME}, 2.0)
    assert second["gpu0"] == GpuState(name=NAME, values={"energy_j": 2.0, "pcie_width": 16}, read_s=2.0)


@pytest.mark.parametrize(
    ("expires_unix_s", "text"),
    [
        (None, "n/a"),
        (1_000_000.0 + 9e9, "for ever"),
        (999_999.0, "in use"),
        (1_000_000.0 + 4000, "(1:06:40)"),
        (1_000_000.0 + 5 * 86400, "1970-01-17"),
    ],
)
def test_until_when_a_model_stays(expires_unix_s: float | None, text: str) -> None:
    assert text in words.until(expires_unix_s, 1_000_000.0)


def test_power_says_when_it_is_the_average() -> None:
    assert words.power({"power_average_w": 388.25}) == "388 W avg"
    assert words.power({"power_w": 90.5}) == "90 W"
    assert words.power({}) == "n/a"


def slots(*decoded: int | None, task: int = 0) -> list[dict[str, object]]:
    return [
        {
            "model": "m",
            "slots": [
                {
                    "id": n,
                    "is_processing": one is not None,
                    "id_task": task,
                    "next_token": [{"n_decoded": one}],
                }
                for n, one in enumerate(decoded)
            ],
        }
    ]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=4), st.integers(0, 100), st.floats(0.1, 5))
def test_tokens_of_slots_are_counted_between_two_looks(counts: list[int], more: int, gap_s: float) -> None:
    before = look_at_slots(slots(*counts), 10.0)[1]
    load, after = look_at_slots(slots(*[count + more for count in counts]), 10.0 + gap_s)
    assert (load.slots, load.busy) == (len(counts), len(counts))
    assert tokens_per_s(before, after) == pytest.approx(more * len(counts) / gap_s)
    assert tokens_per_s(None, after) is None


def test_a_task_that_began_in_between_counts_whole_and_an_idle_slot_not_at_all() -> None:
    before = look_at_slots(slots(400, None), 10.0)[1]
    after = look_at_slots(slots(30, None, task=1), 11.0)[1]
    assert tokens_per_s(before, after) == 30
    assert tokens_per_s(after, SlotLook(at_s=12.0, tokens={})) == 0


def test_a_gateway_of_many_models_tells_its_fastest() -> None:
    status = {
        "queue": {"active": 2, "waiting": 5, "limits": {"a": 4, "b": 2}},
        "upstreams": [
            {"models": {"a": {"tokens_per_s": 40.0}, "b": {"tokens_per_s": None}}},
            {"models": {"a": {"tokens_per_s": 55.0}}},
        ],
    }
    load = load_of_gateway(status)
    assert (load.slots, load.busy, load.waiting, load.tokens_per_s) == (6, 2, 5, 55.0)
    assert load.tokens_are_of_one


def look(url: str) -> ServerState:
    return ServerWatch(url).look()


async def test_an_embedded_server_tells_models_slots_and_tokens(server: EmbeddedServer) -> None:
    watch = ServerWatch(server.url)
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(
            server.post(
                "/api/generate",
                {"model": server.model, "prompt": "1 2 3", "stream": False, "options": {"num_predict": 200}},
            )
        )
        while not (await asyncio.to_thread(watch.look)).busy and not answer.done():
            pass
        state = await asyncio.to_thread(watch.look)
    slots = 2 * len(state.models)
    assert (state.kind, state.slots, state.waiting, state.trouble) == ("embedded server", slots, None, None)
    assert server.model in [model.name for model in state.models]
    assert state.tokens_per_s is not None
    assert f"/{slots} slots busy · " in words.load(state)


async def test_a_gateway_tells_its_queue(server: EmbeddedServer) -> None:
    async with gateway(server.url) as service:
        await service.chat(model=server.model, messages=HELLO, options={"num_predict": 4}, stream=False)
        state = await asyncio.to_thread(look, service.url)
    assert (state.kind, state.version, state.busy, state.waiting) == ("gateway", __version__, 0, 0)
    assert state.trouble is None
    assert [model.name for model in state.models] != []


def test_an_ollama_tells_its_models_only() -> None:
    answers = {"/api/ps": {"models": []}, "/api/version": {"version": "0.33.1"}}
    with ollama_standin.serving(answers) as url:
        assert look(url) == ServerState(url=url, kind="Ollama", version="0.33.1")


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"/api/ps": {"models": [{"expires_at": "soon"}]}},
        {"/api/ps": {"models": []}, "/api/version": {"version": "1"}, "/lab/status": {"queue": 3}},
        {"/api/ps": {"models": []}, "/api/version": {"version": "1"}, "/lab/engines": [{"model": "m"}]},
    ],
)
def test_answers_of_something_else_are_trouble_and_no_crash(answers: dict[str, object]) -> None:
    with ollama_standin.serving(answers) as url:
        assert look(url).trouble is not None


def test_a_server_that_goes_and_comes_back_is_found_again() -> None:
    answers = {"/api/ps": {"models": []}, "/api/version": {"version": "1"}}
    watch = ServerWatch(url := ollama_standin.free_url())
    assert "Connection refused" in (watch.look().trouble or "")
    with ollama_standin.serve(answers, int(url.rpartition(":")[2])) as standin:
        thread = threading.Thread(target=standin.serve_forever)
        thread.start()
        assert watch.look() == ServerState(url=url, kind="Ollama", version="1")
        standin.shutdown()
        thread.join()
    assert watch.look().trouble is not None


def test_a_server_that_never_answers_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollamalab.monitor.server_watch._TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        assert look(url).trouble == f"no answer from {url}/api/ps in 0.05 s"


def families(page: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_the_page_has_what_the_picture_has() -> None:
    content_type, page = Exposition(board).page()
    assert content_type.startswith("text/plain; version=0.0.4")
    found = families(page)
    assert found["ollamalab_gpu_energy_joules_total"] == MACHINE["energy_j"]
    assert found["ollamalab_server_up"] == 1
    assert found["ollamalab_server_model_bytes"] == 4 << 30
    assert (found["ollamalab_server_busy"], found["ollamalab_server_waiting"]) == (3, 7)
    assert found["ollamalab_server_tokens_per_second"] == 98.4
    assert found["ollamalab_host_cpu_ratio"] == 0.34


def test_what_is_not_known_is_not_on_the_page() -> None:
    found = families(Exposition(lambda: board(server=None, values={"energy_j": None})).page()[1])
    assert not any(name.startswith(("ollamalab_gpu_", "ollamalab_server_")) for name in found)


@asynccontextmanager
async def site(tmp_path: Path) -> AsyncIterator[tuple[str, Watching]]:
    watching = Watching(ReplaySampler(recording(tmp_path / "a.json", seconds=60)), None, interval_s=0.01)
    with bound_socket("127.0.0.1", 0) as listener:
        watcher = asyncio.ensure_future(watching.run())
        await until(lambda: bool(watching.board().gpus))
        async with serving(listener, {"/metrics": Exposition(watching.board).page}) as url:
            yield url, watching
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def test_what_one_monitor_serves_another_reads_the_same(tmp_path: Path) -> None:
    """The round trip: a source, our page on a real socket, our own scrape of it."""
    async with site(tmp_path) as (url, _):
        sampler = PrometheusSampler(url)
        read = await asyncio.to_thread(sampler.read)
    assert told(read["gpu0"]) == pytest.approx(MACHINE)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/metrics", {}, 200),
        ("HEAD", "/metrics", {}, 200),
        ("GET", "/metrics?x=1", {"Host": "localhost:9500"}, 200),
        ("GET", "/metrics", {"Origin": "http://localhost:3000"}, 200),
        ("OPTIONS", "/metrics", {"Origin": "http://localhost:3000"}, 204),
        ("GET", "/metrics", {"Host": "evil.example"}, 403),
        ("GET", "/metrics", {"Origin": "http://evil.example"}, 403),
        ("OPTIONS", "/metrics", {"Origin": "http://evil.example"}, 403),
        ("POST", "/metrics", {}, 405),
        ("DELETE", "/metrics", {}, 405),
        ("GET", "/", {}, 404),
        ("GET", "/../etc/passwd", {}, 404),
    ],
)
async def test_the_page_can_only_be_read_and_only_from_near(
    method: str, path: str, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    async with (
        site(tmp_path) as (url, _),
        aiohttp.ClientSession() as http,
        http.request(method, f"{url}{path}", headers=headers) as reply,
    ):
        assert reply.status == status
        body = await reply.read()
        assert (b"ollamalab_gpu_" in body) == (status == 200 and method == "GET")
        assert ("Access-Control-Allow-Origin" in reply.headers) == ("localhost" in headers.get("Origin", ""))


async def test_a_source_that_ends_is_noted_and_the_rest_goes_on() -> None:
    class Ending(NoGpu):
        def read(self) -> Mapping[str, Mapping[str, float | None]]:
            raise SamplerUnavailable("no GPU is left to read")

    watching = Watching(Ending("gpu0 went away: GPU is lost"), None, interval_s=0.01)
    watcher = asyncio.ensure_future(watching.run())
    await until(lambda: bool(watching.board().host) and len(watching.board().notes) == 2)
    assert not watcher.done()
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert watching.board().notes == ("gpu0 went away: GPU is lost", "no GPU is left to read")


@pytest.mark.parametrize(
    ("text", "address"),
    [("0", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "0.0.0.0"), ("[::1]:0", "::1")],
)
def test_it_serves_on_loopback_unless_an_address_is_given(text: str, address: str) -> None:
    with serve_address(text) as listener:
        assert listener.getsockname()[0] == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http", "--serve 'http' is no port; write for example 9500"),
        ("99999", "is no port"),
        ("-1", "is no port"),
        ("203.0.113.7:9500", "cannot listen on 203.0.113.7:9500"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        serve_address(text)


def test_every_metric_of_a_gpu_is_one_that_we_read() -> None:
    found = families(Exposition(board).page()[1])
    ours = {metric for metric, _ in EXPOSED.values()}
    assert {name for name in found if name.startswith("ollamalab_gpu_")} <= ours
