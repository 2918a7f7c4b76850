"""The load generator: every offered request ends in exactly one record, and its times are the wire's."""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.client import Capture
from ollamalab.connection import OllamaConnection
from ollamalab.errors import BadReply, SettingsError
from ollamalab.loadgen import Lag, LoadGenerator, LoadResult, LoadSettings
from ollamalab.loadgen.health import lag_of, reasons_unfit
from ollamalab.metrics import lindley_response_s
from ollamalab.protocol.lines import encode_line
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.workload import inference_request

QUICK: dict[str, Any] = {"first_s": 0.004, "gap_s": 0.001, "tokens": 6}


def request(index: int) -> Request:
    """Return a request whose prompt begins with its number: the key to the server's log."""
    messages = [{"role": "user", "content": f"{index:06d} hello"}]
    body = {"model": "scripted", "messages": messages, "options": {"num_predict": 6}}
    return inference_request("/api/chat", body)


async def offer(script: Script, settings: LoadSettings) -> tuple[LoadResult, ScriptedServer]:
    async with ScriptedServer(script) as server, OllamaConnection(server.url) as upstream:
        return await LoadGenerator(upstream, target=server.url).run(settings, request), server


def constant(rate_rps: float, **more: Any) -> LoadSettings:
    return LoadSettings(arrivals=Arrivals(pattern=ArrivalPattern.CONSTANT, rate_rps=rate_rps), **more)


# What the client saw, against what the server knows


@pytest.mark.parametrize(
    "settings", [LoadSettings(clients=8, requests=64), constant(1000, requests=64)], ids=["closed", "open"]
)
async def test_every_token_is_stamped_between_its_write_and_the_next_thing_the_server_did(
    settings: LoadSettings,
) -> None:
    """Both clocks are one: a stamp before the server's own would be a stamp of something else."""
    result, server = await offer(Script(**QUICK), settings)
    log = {int(served.prompt[:6]): served for served in server.log}
    assert len(result.records) == len(log) == 64
    for record in result.records:
        served = log[record.index]
        assert record.outcome is Outcome.OK
        assert len(record.token_times_s) == len(served.written_s) == record.output_tokens == 6
        assert all(
            seen > written for seen, written in zip(record.token_times_s, served.written_s, strict=True)
        )
        moments = [record.intended_s, record.sent_s, served.arrived_s, served.written_s[0]]
        moments += [record.first_token_s, record.last_token_s, record.end_s]
        assert moments == sorted(moments, key=lambda moment: moment or math.nan)
        assert record.first_token_s == record.token_times_s[0]
        assert record.last_token_s == record.token_times_s[-1]


async def test_response_times_count_from_the_plan_and_follow_lindleys_recursion() -> None:
    """A server that falls behind cannot hide it: each request waits for all before it."""
    script = Script(**QUICK, slots=1, stalls={5: 0.05})
    settings = constant(200, requests=20)
    result, server = await offer(script, settings)
    truth = lindley_response_s(settings.plan_s(), [script.service_s(index) for index in range(20)])
    for record, served, response_s in zip(result.records, server.log, truth, strict=True):
        assert served.prompt == f"{record.index:06d} hello"
        # Never sooner than arithmetic allows, whatever the machine does.
        assert (record.end_s or 0.0) - record.intended_s >= response_s - 0.002
    gaps = [b.intended_s - a.intended_s for a, b in zip(result.records, result.records[1:], strict=False)]
    assert gaps == pytest.approx([0.005] * 19)


async def test_a_slot_wait_is_in_the_total_only() -> None:
    result, _ = await offer(Script(**QUICK, slots=1), LoadSettings(clients=4, requests=12))
    waits_s = []
    for record in result.records:
        server = record.server
        assert server is not None
        assert None not in (server.total_s, server.load_s, server.prompt_eval_s, server.eval_s)
        worked_s = (server.load_s or 0) + (server.prompt_eval_s or 0) + (server.eval_s or 0)
        waits_s.append((server.total_s or 0) - worked_s)
    assert max(waits_s) > min(record.server.eval_s or 0 for record in result.records if record.server)


# How load is offered


async def test_a_closed_loop_never_has_more_in_flight_than_clients() -> None:
    result, server = await offer(Script(**QUICK), LoadSettings(clients=3, requests=20))
    moments = [(served.arrived_s, 1) for served in server.log]
    moments += [(served.ended_s or 0.0, -1) for served in server.log]
    in_flight = peak = 0
    for _, change in sorted(moments):
        in_flight += change
        peak = max(peak, in_flight)
    assert peak == 3
    assert result.planned == len(result.records) == 20


async def test_an_open_loop_sends_on_though_nothing_comes_back() -> None:
    faults = dict.fromkeys(range(10), Fault.HANG)
    result, server = await offer(Script(faults=faults), constant(500, requests=10, deadline_s=1.0))
    assert len(server.log) == 10
    assert {record.outcome for record in result.records} == {Outcome.TIMEOUT}
    assert all("planned send" in (record.error or "") for record in result.records)


async def test_in_flight_is_bounded_and_the_wait_shows_as_send_lag() -> None:
    settings = constant(1000, requests=8, max_in_flight=1)
    result, server = await offer(Script(**QUICK), settings)
    for earlier, later in zip(server.log, server.log[1:], strict=False):
        assert (earlier.ended_s or math.inf) <= later.arrived_s
    assert result.health.send_lag_s is not None
    assert result.health.send_lag_s.max > 7 * 0.008 - 0.007


async def test_the_warm_up_hands_over_without_draining() -> None:
    script = Script(**QUICK, stalls={0: 0.1})
    result, server = await offer(script, LoadSettings(clients=2, warmup=2, requests=6))
    assert [record.warmup for record in result.records] == [True] * 2 + [False] * 6
    assert server.log[2].arrived_s < (server.log[0].ended_s or 0.0)


async def test_a_duration_ends_the_sends_and_drains_the_rest() -> None:
    closed, _ = await offer(
        Script(**QUICK), LoadSettings(clients=2, warmup=1, requests=None, duration_s=0.05)
    )
    timed, _ = await offer(Script(**QUICK), constant(200, requests=None, duration_s=0.05, warmup=3))
    assert {record.outcome for record in (*closed.records, *timed.records)} == {Outcome.OK}
    assert closed.planned is None
    assert (timed.planned, len(timed.records)) == (10, 13)


async def test_equal_seeds_offer_the_same_poisson_plan() -> None:
    poisson = Arrivals(pattern=ArrivalPattern.POISSON, rate_rps=10)
    plans = [LoadSettings(arrivals=poisson, requests=9, seed=seed).plan_s() for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


async def test_a_sweep_never_offers_the_same_prompt_twice() -> None:
    levels = [LoadSettings(clients=clients, requests=4) for clients in (1, 2, 4)]
    async with ScriptedServer(Script(**QUICK)) as server, OllamaConnection(server.url) as upstream:
        results = await LoadGenerator(upstream, target=server.url).sweep(levels, request)
    assert [len(result.records) for result in results] == [4, 4, 4]
    assert len({served.prompt for served in server.log}) == 12


async def test_replies_shorter_than_asked_are_counted() -> None:
    result, _ = await offer(Script(first_s=0.0, gap_s=0.0, tokens=5), LoadSettings(requests=3))
    assert result.short_replies == 3
    assert result.records[0].requested_tokens == 6


@pytest.mark.parametrize(
    "bad",
    [
        {"clients": 0},
        {"requests": 0},
        {"requests": None},
        {"requests": 5, "duration_s": 1.0},
        {"deadline_s": 0.0},
        {"warmup": -1},
        {"ramp_s": math.inf},
        {"clients": 10, "max_in_flight": 9},
    ],
)
def test_a_load_that_cannot_be_offered_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        LoadSettings(**bad)


# How it ends

OUTCOMES = {
    Fault.BUSY: Outcome.HTTP_ERROR,
    Fault.RESET: Outcome.TRUNCATED,
    Fault.HANG: Outcome.TIMEOUT,
    Fault.NOT_HTTP: Outcome.TRUNCATED,
    Fault.EMPTY: Outcome.EMPTY,
    Fault.STUCK: Outcome.TIMEOUT,
    Fault.CUT: Outcome.TRUNCATED,
    Fault.SILENT_END: Outcome.TRUNCATED,
    Fault.ERROR_LINE: Outcome.ERROR_LINE,
    Fault.GARBAGE: Outcome.ERROR_LINE,
}


async def test_each_fault_ends_in_its_outcome_and_harms_no_other_request() -> None:
    assert set(OUTCOMES) == set(Fault)
    faults = dict(enumerate(OUTCOMES))
    settings = LoadSettings(clients=1, requests=2 * len(faults), deadline_s=1.5)
    result, _ = await offer(Script(**QUICK, faults=faults), settings)
    outcomes = [record.outcome for record in result.records]
    assert outcomes == [*OUTCOMES.values(), *[Outcome.OK] * len(faults)]
    for fault, record in zip(OUTCOMES, result.records, strict=False):
        assert (record.error is None) == (fault is Fault.EMPTY)
        assert "\n" not in (record.error or "")
    by_fault = dict(zip(OUTCOMES, result.records, strict=False))
    assert by_fault[Fault.BUSY].status == 503
    assert "maximum pending requests exceeded" in (by_fault[Fault.BUSY].error or "")
    assert by_fault[Fault.EMPTY].output_tokens is None or by_fault[Fault.EMPTY].output_tokens == 0
    assert len(by_fault[Fault.STUCK].token_times_s) == 3


class Canned:
    """An Upstream, and its Reply, that no socket is behind."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}

    async def send(self, _: Request) -> Canned:
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield encode_line({"message": {"content": "hello"}, "done": False})
        yield encode_line({"message": {"content": ""}, "done": True, "eval_count": 1})

    async def __aenter__(self) -> Canned:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_any_upstream_can_be_measured() -> None:
    """A cache or a queue in front of a connection knows no moments of a socket."""
    result = await LoadGenerator(Canned(), target="canned").run(LoadSettings(requests=3), request)
    for record in result.records:
        assert record.outcome is Outcome.OK
        assert record.connected_s is None
        assert record.sent_s is not None
        assert record.headers_s is not None
        assert record.first_token_s is not None
        assert record.sent_s <= record.headers_s <= record.first_token_s


async def test_nothing_listening_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with OllamaConnection(url) as upstream:
            result = await LoadGenerator(upstream, target=url).run(LoadSettings(requests=3), request)
    assert [record.outcome for record in result.records] == [Outcome.REFUSED] * 3
    assert all(record.sent_s is not None and record.status is None for record in result.records)


@pytest.mark.parametrize(
    "settings", [LoadSettings(clients=4, requests=99), constant(500, requests=99)], ids=["closed", "open"]
)
async def test_a_stopped_run_keeps_what_ended_and_cancels_what_was_in_flight(settings: LoadSettings) -> None:
    faults = dict.fromkeys(range(4, 99), Fault.STUCK)
    script = Script(**QUICK, faults=faults)
    async with ScriptedServer(script) as server, OllamaConnection(server.url) as upstream:
        generator = LoadGenerator(upstream, target=server.url)
        assert generator.progress is None
        run = asyncio.create_task(generator.run(settings, request))
        await server.received(8)
        await server.ended(4)
        generator.stop()
        result = await run
        await server.ended(len(server.log))
    assert generator.progress is not None
    assert generator.progress.offered == generator.progress.ended == len(result.records)
    counts = Counter(record.outcome for record in result.records)
    assert counts[Outcome.OK] <= 4 <= counts[Outcome.CANCELLED]
    assert counts[Outcome.OK] + counts[Outcome.CANCELLED] == len(result.records)
    assert not result.is_complete


async def test_cancelling_the_call_hangs_up_and_passes_through() -> None:
    script = Script(faults={0: Fault.HANG})
    async with ScriptedServer(script) as server, OllamaConnection(server.url) as upstream:
        generator = LoadGenerator(upstream, target=server.url)
        run = asyncio.create_task(generator.run(LoadSettings(), request))
        await server.received(1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await server.ended(1)
    assert generator.progress is not None
    assert generator.progress.offered == generator.progress.ended == 1


# Reading a capture


def capture(*reads: tuple[float, bytes], status: int | None = 200) -> Capture:
    return Capture(
        index=0, request=request(0), intended_s=0.0, sent_s=0.0, status=status, reads=list(reads), end_s=9.0
    )


def chat(content: str, **more: Any) -> bytes:
    return encode_line({"message": {"role": "assistant", "content": content}, "done": False, **more})


FINAL = chat("", done=True, done_reason="stop", eval_count=2, total_duration=5_000_000_000)


def test_a_line_is_stamped_by_the_read_that_completes_it() -> None:
    first, second = chat("a"), chat("b")
    record = capture((1.0, first[:9]), (2.0, first[9:] + second[:3]), (3.0, second[3:] + FINAL)).record("x")
    assert record.token_times_s == (2.0, 3.0)
    assert (record.end_s, record.shared_reads) == (3.0, 0)
    assert record.server is not None
    assert (record.server.total_s, record.server.load_s) == (5.0, None)


def test_lines_that_share_a_read_are_counted() -> None:
    record = capture((1.0, chat("a") + chat("b") + chat("c")), (2.0, chat("d") + FINAL)).record("x")
    assert record.token_times_s == (1.0, 1.0, 1.0, 2.0)
    assert record.shared_reads == 2


def test_an_empty_first_chunk_is_no_token_and_thinking_is_one() -> None:
    thinking = encode_line({"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False})
    record = capture((1.0, chat("")), (2.0, thinking), (3.0, chat("a") + FINAL)).record("x")
    assert record.token_times_s == (2.0, 3.0)


def test_a_single_object_without_newline_is_a_whole_reply() -> None:
    whole = encode_line({"response": "hello", "done": True, "eval_count": 1}).strip()
    record = capture((1.0, whole[:20]), (2.0, whole[20:])).record("x")
    assert (record.outcome, record.token_times_s, record.output_tokens) == (Outcome.OK, (2.0,), 1)


def test_a_line_that_broke_off_in_its_middle_is_no_error_of_the_server() -> None:
    """Whoever hangs up seldom does so between two lines."""
    given_up = capture((1.0, chat("a") + chat("b")[:20]))
    given_up.is_cancelled = True
    assert given_up.record("x").outcome is Outcome.CANCELLED
    cut = capture((1.0, chat("a") + chat("b")[:20]))
    cut.failure = BadReply("the connection closed")
    record = cut.record("x")
    assert (record.outcome, record.error) == (Outcome.TRUNCATED, "the connection closed")
    assert record.token_times_s == (1.0,)


def test_an_error_wins_over_a_done_and_an_http_error_over_everything() -> None:
    error = encode_line({"error": "it\nbroke " + "x" * 500})
    record = capture((1.0, chat("a") + error + FINAL)).record("x")
    assert record.outcome is Outcome.ERROR_LINE
    assert record.error is not None
    assert record.error.startswith("it broke x")
    assert len(record.error) < 210
    record = capture((1.0, b'{"error": {"message": "no such model"}}'), status=404).record("x")
    assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "HTTP 404: no such model")
    assert record.first_token_s is None


# The client's own fitness


@pytest.mark.parametrize(
    ("cpu_ratio", "loop_p99_s", "send_p50_s", "word"),
    [
        (0.3, 0.005, 0.001, None),
        (0.95, 0.005, 0.001, "core"),
        (0.3, 0.005, 0.02, "planned moment"),
        (0.3, 0.011, 0.001, "event loop"),
        (0.3, 0.009, None, None),
    ],
)
def test_a_client_that_was_the_bottleneck_is_unfit(
    cpu_ratio: float, loop_p99_s: float, send_p50_s: float | None, word: str | None
) -> None:
    reasons = reasons_unfit(
        cpu_ratio=cpu_ratio,
        loop_lag_s=Lag(p50=0.0, p99=loop_p99_s, max=1.0, n=100),
        send_lag_s=None if send_p50_s is None else Lag(p50=send_p50_s, p99=1.0, max=1.0, n=100),
        median_ttft_s=0.1,
    )
    assert len(reasons) == (word is not None)
    assert word is None or word in reasons[0]


def test_a_lag_below_the_floor_is_never_held_against_a_run() -> None:
    lag = lag_of([0.0] * 99 + [0.006])
    assert lag is not None
    assert reasons_unfit(cpu_ratio=0.1, loop_lag_s=lag, send_lag_s=None, median_ttft_s=0.001) == ()
    assert lag_of([]) is None


async def test_a_blocked_loop_shows_in_the_health_of_the_run() -> None:
    """The request is made on the loop: a slow one delays every stamp, and the run says so."""

    def slow_request(index: int) -> Request:
        for _ in range(200_000):
            pass
        return request(index)

    async with ScriptedServer(Script(**QUICK)) as server, OllamaConnection(server.url) as upstream:
        result = await LoadGenerator(upstream, target=server.url).run(
            constant(2000, requests=60), slow_request
        )
    assert not result.health.fit
    assert result.health.cpu_ratio > 0.1
    assert result.health.loop_lag_s is not None
    assert len(result.health.load_average) == 3
