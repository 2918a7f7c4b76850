"""Scenarios on real sockets: each brings its situation about, and its ledger shows it in the right stage."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from lab_samples import done

from ollamalab import lab
from ollamalab.client import OllamaClient
from ollamalab.compare import Visit
from ollamalab.embedded.models import DEFAULT_MODEL
from ollamalab.errors import UpstreamError, UpstreamUnavailable
from ollamalab.hosts import open_target
from ollamalab.lab import PromptShape, Subject, ledgers, stages, timeouts
from ollamalab.lab import subject as lab_subject
from ollamalab.lab.stages import BUSY, CACHED, COLD, LONG, LOOKED_UP, RELOADED, SECURED, WARM, WHOLE, Bodies
from ollamalab.lab.tls_front import tls_front, why_no_front
from ollamalab.records import Outcome, Sample
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import ServerSettings

VISIT = Visit(index=0, block=0, arm="")
SHAPE = PromptShape(prompt_tokens=12, num_predict=3)
SITUATIONS = stages.Situations(long_tokens=40, num_ctx=256, busy_tokens=4, slots=1, lookup_s=0.03)
QUICK: dict[str, Any] = {"first_s": 0.004, "gap_s": 0.002, "tokens": 4}
CALM = frozenset(stages.SCENARIOS) - {COLD, RELOADED}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted server never unloads; do not wait for it."""
    monkeypatch.setattr(lab_subject, "_UNLOAD_DEADLINE_S", 0.05)


@asynccontextmanager
async def scripted(**script: Any) -> AsyncIterator[tuple[ScriptedServer, stages.Scenarios]]:
    """Give a scripted server with one slot, and the scenarios on it."""
    async with (
        ScriptedServer(Script(**{**QUICK, "slots": 1, **script})) as server,
        open_target(server.url) as target,
        Subject(target, "scripted", seed=0) as subject,
        stages.Scenarios(subject, SHAPE, SITUATIONS, seed=0) as scenarios,
    ):
        yield server, scenarios


async def test_a_server_that_keeps_its_models_has_no_cold_scenario() -> None:
    async with scripted() as (_, scenarios):
        assert list(scenarios.not_run) == [COLD]
        assert "scripted" in scenarios.not_run[COLD]


async def test_every_ledger_adds_up_and_shows_its_situation() -> None:
    async with scripted() as (_, scenarios):
        visitors = scenarios.visitors()
        for name in CALM:
            (record,) = await visitors[name](VISIT)
            assert record.outcome is Outcome.OK, name
        assert ledgers.gap_s(scenarios.answers) < 1e-9
        found = {name: answers[0].stages for name, answers in scenarios.answers.items() if answers}
    assert found.keys() == CALM
    assert all(one.connect_s is not None for one in found.values()), "each has a connection of its own"
    assert [name for name, one in found.items() if one.tls_s is not None] == [SECURED]
    assert [name for name, one in found.items() if one.dns_s is not None] == [LOOKED_UP]
    assert (found[LOOKED_UP].dns_s or 0.0) >= SITUATIONS.lookup_s
    assert found[WARM].slot_wait_s == pytest.approx(0.0, abs=1e-6)


async def test_while_the_slot_is_busy_a_request_waits_for_it_and_the_ledger_says_how_long() -> None:
    async with scripted(gap_s=0.1) as (server, scenarios):
        await scenarios.visitors()[BUSY](VISIT)
        other, ours = server.log
    assert other.is_complete, "ours had to wait for its end"
    assert ours.started_s is not None
    ledger = scenarios.answers[BUSY][0].stages
    assert ledger.slot_wait_s == pytest.approx(ours.started_s - ours.arrived_s, abs=1e-6)
    assert ours.started_s > ours.arrived_s


async def test_the_long_prompt_is_asked_again_and_all_others_begin_with_a_number_of_their_own() -> None:
    async with scripted() as (server, scenarios):
        visitors = scenarios.visitors()
        for name in (WARM, WARM, LONG, CACHED):
            await visitors[name](VISIT)
        first, second, long, once, again = (served.prompt for served in server.log)
    assert first != second
    assert first.split()[1:] == second.split()[1:], "the words of a block are the same"
    assert once == again != long
    assert len(long) > len(first)


async def test_a_request_that_fails_is_a_record_without_a_ledger() -> None:
    async with scripted(faults={0: Fault.BUSY, 1: Fault.RESET}) as (_, scenarios):
        visitor = scenarios.visitors()[WARM]
        (busy,), (cut,) = [await visitor(VISIT) for _ in range(2)]
        assert scenarios.answers[WARM] == []
    assert Outcome.OK not in (busy.outcome, cut.outcome)
    assert "503" in (busy.error or "")
    assert busy.end_s is not None


async def test_an_answer_that_is_not_streamed_begins_at_its_end() -> None:
    """So what most of the wait was is not the prompt but all of the generation."""
    async with scripted(tokens=3, first_s=0.2, gap_s=0.2) as (_, scenarios):
        await scenarios.visitors()[WHOLE](VISIT)
        await scenarios.visitors()[WARM](VISIT)
        part, share = ledgers.culprit(scenarios.answers[WHOLE])
        begins_s = ledgers.begins_of(scenarios.answers[WHOLE][0])
        assert part == "answer"
        assert 0.0 < share <= 1.0
        assert begins_s > 0.2 + 2 * 0.2
        assert ledgers.culprit(scenarios.answers[WARM])[0] == "prompt"


async def test_the_tables_have_a_row_for_each_scenario_and_say_what_was_not_run() -> None:
    async with scripted() as (_, scenarios):
        visitors = scenarios.visitors()
        for name in (WARM, SECURED, LOOKED_UP):
            for _ in range(2):
                await visitors[name](VISIT)
        answers, not_run = scenarios.answers, scenarios.not_run
        table = ledgers.ledger_table(answers, not_run=not_run)
        seen = ledgers.seen_table(answers)
        frame = ledgers.stage_frame(answers)
    assert [row[0] for row in table.rows] == [WARM, SECURED, LOOKED_UP, COLD]
    assert str(table.rows[-1][-1]).startswith("not run: ")
    for row in table.rows[:-1]:
        parts = [part for part in row[2:-2] if isinstance(part, float)]
        assert row[-2] == pytest.approx(sum(parts)), "means of parts add up to the mean of the whole"
    assert [row[0] for row in seen.rows] == [WARM, SECURED, LOOKED_UP]
    totals_s = [ledgers.mean_e2e_s(answers[name]) for name in (WARM, SECURED, LOOKED_UP)]
    assert frame.sum(axis=1).tolist() == pytest.approx(totals_s)
    assert ledgers.connect_title(answers).startswith("The TCP handshake is at most ")
    assert "slow name lookup" in ledgers.waits_sentence(answers)
    real = [ledgers.connecting_of(answer) for name in (WARM, SECURED) for answer in answers[name]]
    assert ledgers.longest_connecting_s(answers, leave_out=LOOKED_UP) == max(real)
    assert ledgers.longest_connecting_s(answers, leave_out=WARM) >= SITUATIONS.lookup_s


async def test_a_host_that_was_not_sampled_is_absent_and_not_idle() -> None:
    async with scripted() as (_, scenarios):
        visit = Visit(index=0, block=0, arm=WARM)
        (record,) = await scenarios.visitors()[WARM](visit)
    trials = lab.Trials(arms=(WARM,), records=(replace(record, arm=WARM),))
    assert ledgers.host_table(trials, [], interval_s=0.1).rows == ((WARM, None, None, None, None, 0),)


def test_what_the_host_did_is_taken_from_the_samples_during_each_scenario() -> None:
    def host(at_s: float, cpu: float | None, read: float) -> Sample:
        return Sample(at_s=at_s, source="host", values={"cpu_ratio": cpu, "read_bytes": read})

    def server(at_s: float, cores: float, rss: float) -> Sample:
        values = {"cpu_ratio": cores, "rss_bytes": rss}
        return Sample(at_s=at_s, source="server http://127.0.0.1:1", values=values)

    trials = lab.Trials(arms=("a", "b"), records=(done("a", sent_s=1.0), done("b", sent_s=11.0, end_s=12.0)))
    samples = [
        host(0.9, 0.9, 5e6),
        host(1.5, None, 6e6),
        host(2.0, 0.5, 7e6),
        host(5.0, 0.1, 50e6),
        host(11.5, 0.3, 50e6),
        server(1.5, 1.0, 100e6),
        server(2.0, 2.0, 300e6),
    ]
    table = ledgers.host_table(trials, samples, interval_s=0.1)
    assert table.rows == (("a", 0.5, 1.5, 300.0, 2.0, 1), ("b", 0.3, None, None, 0.0, 1))


async def test_on_a_real_engine_loads_are_where_the_model_was_not_or_was_loaded_otherwise() -> None:
    """And its address may have any name below .localhost, as Ollama's may."""
    await lab.have_models("embedded", DEFAULT_MODEL)
    settings = ServerSettings(context_length=512, num_threads=1)
    async with (
        open_target("embedded", settings, models=[DEFAULT_MODEL]) as target,
        Subject(target, DEFAULT_MODEL, seed=1) as subject,
        stages.Scenarios(subject, SHAPE, SITUATIONS, seed=1) as scenarios,
    ):
        assert scenarios.not_run == {}
        visitors = scenarios.visitors()
        contexts = {}
        for name in stages.SCENARIOS:
            (record,) = await visitors[name](VISIT)
            assert record.outcome is Outcome.OK, f"{name}: {record.error}"
            listing = await subject.listing()
            contexts[name] = listing and listing["context_length"]
        asleep = timeouts.first_requests(subject, Bodies(DEFAULT_MODEL, SHAPE, seed=1), 0.02)
        (given_up,) = await asleep(VISIT)
        assert given_up.outcome is Outcome.TIMEOUT
        (sizing,) = await timeouts.size_up_each(subject, [DEFAULT_MODEL, "no:such"], SHAPE, loads=1, seed=1)
    assert contexts == dict.fromkeys(stages.SCENARIOS, 512) | {RELOADED: SITUATIONS.num_ctx}
    loads = {name: ledgers.mean_parts(answers)["load"] or 0.0 for name, answers in scenarios.answers.items()}
    assert min(loads, key=loads.__getitem__) not in (COLD, RELOADED)
    assert sorted(loads, key=loads.__getitem__)[-2:] in ([COLD, RELOADED], [RELOADED, COLD])
    assert ledgers.gap_s(scenarios.answers) < 1e-9
    assert sizing.model == DEFAULT_MODEL
    assert len(sizing.loads_s) == 1
    assert (sizing.size_bytes or 0.0) > 5e7
    assert sizing.timeouts(0.001) is not None


# The front that terminates TLS


async def test_a_front_secures_a_plain_server_and_only_who_knows_its_certificate_trusts_it() -> None:
    async with ScriptedServer(Script(**QUICK)) as server, tls_front(server.url) as (url, trust):
        assert url.startswith("https://127.0.0.1:")
        async with OllamaClient(url, ssl_context=trust) as client:
            answers = await asyncio.gather(*(client.chat("scripted", f"{number}") for number in range(3)))
        async with OllamaClient(url, ssl_context=ssl.create_default_context()) as stranger:
            with pytest.raises(UpstreamUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.chat("scripted", "hello")
    assert [answer.text for answer in answers] == ["0 1 2 3 "] * 3
    assert all(answer.stages.tls_s is not None for answer in answers)
    assert len(server.log) == 3


async def test_behind_a_front_a_server_that_is_gone_is_a_failure_and_not_a_wait() -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        gone = server.url
    async with tls_front(gone) as (url, trust), OllamaClient(url, ssl_context=trust) as client:
        with pytest.raises(UpstreamError):
            await client.chat("scripted", "hello")


def test_a_server_with_tls_of_its_own_needs_no_front(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "TLS itself" in (why_no_front("https://gpu2:443") or "")
    assert why_no_front("http://gpu2:11434") is None
    monkeypatch.setenv("PATH", "")
    assert "openssl" in (why_no_front("http://gpu2:11434") or "")
