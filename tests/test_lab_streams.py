"""Streams through gateways that group lines: on real sockets and processes, against a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest
from lab_samples import E2E, RATE, compared, done

from ollamalab import lab
from ollamalab.compare import Visit
from ollamalab.errors import SettingsError
from ollamalab.hosts import open_target
from ollamalab.lab import PromptShape, Streams, Subject
from ollamalab.lab.streams import StreamCost, batching_gateway, gaps_summary
from ollamalab.lab.trials import run_visits
from ollamalab.records import Outcome, RequestRecord, ServerTimings
from ollamalab.scripted import Script, ScriptedServer

TOKENS = 41
SHAPE = PromptShape(prompt_tokens=64, num_predict=TOKENS)


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Subject]:
    """A scripted server whose lines come one by one."""
    async with (
        ScriptedServer(Script(first_s=0.001, gap_s=0.002, tokens=TOKENS)) as scripted,
        open_target(scripted.url) as target,
        Subject(target, "scripted", seed=1) as subject,
    ):
        yield subject


def streamed(times_s: list[float], *, shared_reads: int = 0, arm: str = "", visit: int = 0) -> RequestRecord:
    record = done(arm, visit=visit, block=visit, first_s=times_s[0], last_s=times_s[-1], end_s=times_s[-1])
    return replace(record, token_times_s=tuple(times_s), shared_reads=shared_reads)


# Through real gateways


async def test_ten_lines_leave_in_far_fewer_frames_and_reads_and_nothing_is_lost(server: Subject) -> None:
    async with Streams(server, ["off", "10"], most=2, seed=3) as streams:
        await streams.warm_up(SHAPE)
        visitors = streams.visitors(["off", "10"], 2, SHAPE)
        assert list(visitors) == ["off, 2 streams", "10 lines, 2 streams"]
        visits = [Visit(index=index, block=0, arm=arm) for index, arm in enumerate(visitors)]
        trials = await run_visits(visitors, visits)
    assert [record.outcome for record in trials.records] == [Outcome.OK] * 4
    assert {len(record.token_times_s) for record in trials.records} == {TOKENS}
    straight, grouped = streams.costs[0], streams.costs[1]
    assert straight.lines == straight.frames == 0  # a gateway that does not group does not look
    assert grouped.lines == 2 * (TOKENS + 1)
    assert grouped.frames < grouped.lines / 4
    reads = [lab.reads_per_token(trials.of(arm)) or 0 for arm in visitors]
    assert reads[1] < min(reads[0], 0.25)
    assert all(cost.gateway_cpu_s > 0 and cost.client_cpu_s > 0 for cost in streams.costs.values())
    table = lab.costs_table(trials, streams)
    assert [row[0] for row in table.rows] == list(visitors)
    assert table.rows[0][2] is None
    assert table.rows[1][2] == pytest.approx(grouped.frames / (2 * TOKENS))


async def test_a_gateway_ends_with_its_context(server: Subject) -> None:
    async with batching_gateway(server.target.url, "20ms", most=1) as gateway:
        family = [psutil.Process(pid) for pid in gateway.pids()]
        assert family
    assert not psutil.wait_procs(family, timeout=30)[1]


async def test_an_unknown_mode_is_refused_before_anything_starts(server: Subject) -> None:
    with pytest.raises(SettingsError, match="sometimes"):
        Streams(server, ["off", "sometimes"], most=1, seed=0)


async def test_a_broken_line_is_noted_and_fails_its_request_alone() -> None:
    """Through a gateway as without: the rest of the stream is still read, and the next request is fine."""
    table = await lab.malformed_line("10")
    assert [row[:3] for row in table.rows] == [
        ("straight", "error_line", 12),
        ("straight", "ok", 12),
        ("gateway, 10 lines", "error_line", 12),
        ("gateway, 10 lines", "ok", 12),
    ]
    assert table.rows[0][3] == table.rows[2][3]
    assert "not a JSON object" in str(table.rows[0][3])
    assert table.rows[1][3] == ""


# What the records say


def test_reads_per_token_are_one_where_each_came_alone() -> None:
    alone, together = streamed([1.0, 2.0, 3.0, 4.0]), streamed([1.0, 4.0, 4.0, 4.0], shared_reads=2)
    assert lab.reads_per_token([alone]) == 1
    assert lab.reads_per_token([together]) == 0.5
    assert lab.reads_per_token([alone, together]) == 0.75
    assert lab.reads_per_token([]) is None


def test_pauses_are_those_of_the_reader() -> None:
    grouped = streamed([1.0, 4.0, 4.0, 4.5], shared_reads=1)
    assert lab.longest_pause_s(grouped) == 3.0
    assert lab.longest_pause_s(streamed([1.0])) is None
    assert gaps_summary([grouped]).n == 3
    trials = lab.Trials(arms=("a",), records=(replace(grouped, arm="a"),))
    assert lab.chunk_gaps(trials, ["a"])["value"].tolist() == [3000.0, 0.0, 500.0]


def test_streams_that_waited_for_a_slot_are_told_since_no_grouping_delayed_them() -> None:
    """Seven of eight streams wait on a server with one slot; a URL does not say how many it has."""
    waited = ServerTimings(total_s=2.0, load_s=0.0, prompt_eval_s=0.1, eval_s=0.4)
    at_once = ServerTimings(total_s=0.51, load_s=0.0, prompt_eval_s=0.1, eval_s=0.4)
    many = [done("off, 8 streams", server=waited if stream else at_once) for stream in range(8)]
    one = [done("off, 1 stream", server=at_once)]
    table = lab.delays_table(lab.Trials(arms=("off, 1 stream", "off, 8 streams"), records=(*one, *many)))
    assert table.caption.endswith("first tokens tell of that: off, 8 streams (88%).")
    alone = lab.delays_table(lab.Trials(arms=("off, 1 stream",), records=tuple(one)))
    assert alone.caption.endswith("n/a where n cannot carry a percentile.")


def test_a_cost_is_told_per_chunk_and_only_where_there_is_one(server: Subject) -> None:
    streams = Streams(server, ["off"], most=1, seed=0)
    streams.costs[0] = StreamCost(gateway_cpu_s=0.4, client_cpu_s=1.0, lines=0, frames=0, body_bytes=0)
    cpu = streams.per_token(lambda cost: cost.gateway_cpu_s)
    assert cpu([streamed([1.0, 2.0])]) == pytest.approx(0.2)
    assert cpu([streamed([1.0, 2.0], visit=1)]) is None
    assert cpu([]) is None
    assert streams.per_token(lambda cost: cost.frames or None)([streamed([1.0])]) is None


def test_costs_are_subtracted_field_by_field() -> None:
    before = StreamCost(gateway_cpu_s=1.0, client_cpu_s=2.0, lines=3, frames=2, body_bytes=10)
    after = StreamCost(gateway_cpu_s=1.5, client_cpu_s=2.25, lines=13, frames=4, body_bytes=110)
    assert after - before == StreamCost(
        gateway_cpu_s=0.5, client_cpu_s=0.25, lines=10, frames=2, body_bytes=100
    )


# In words


@pytest.mark.parametrize(
    ("mode", "streams", "name"),
    [("off", 1, "off, 1 stream"), ("10", 8, "10 lines, 8 streams"), ("20ms", 2, "20ms, 2 streams")],
)
def test_an_arm_is_named_by_mode_and_streams(mode: str, streams: int, name: str) -> None:
    assert lab.arm_name(mode, streams) == name


def test_titles_say_only_what_is_shown() -> None:
    longer = compared(E2E, [(8.0, 1.0)] * 8)
    equal = compared(RATE, [(1.0 + pair / 5, 2.4 - pair / 5) for pair in range(8)])
    faster = compared(RATE, [(2.0 + pair / 10, 1.0) for pair in range(8)])
    assert lab.pause_title(longer) == "With new, the longest pause is 8.0× as long"
    assert lab.pause_title(equal) == "How long a reader waits for the next text"
    assert lab.spared_title(equal) == "With new, no gain in tokens/s was shown"
    assert "higher" in lab.spared_title(faster)
    assert lab.ratio_rows([longer], {E2E.name: "pause"})["label"].tolist() == ["new: pause"]
    sentence = lab.batching_sentence(faster, compared(E2E, []), longer)
    assert "reads per token n/a; longest pause 8.00× (8.00–8.00)" in sentence
