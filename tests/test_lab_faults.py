"""What goes wrong between clients and a server: seen from both sides, on real sockets and processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from lab_samples import compared, done, failed
from raw_server import open_sockets

from ollamalab import lab
from ollamalab.compare import Metric, Visit
from ollamalab.connection import OllamaConnection
from ollamalab.errors import SettingsError, TargetError, UpstreamError
from ollamalab.hosts import open_target
from ollamalab.hosts.local import OllamaTarget
from ollamalab.lab import Asker, Episode, Overloads, PromptShape, Scenarios, Subject, Tap, Trouble, Ways
from ollamalab.lab.accounts import UNEXPLAINED, cause
from ollamalab.lab.faults import HANGS, KILLED, NOT_LOADED, busy_slots, engine_pid, why_not
from ollamalab.lab.overload import offer
from ollamalab.lab.tap import prompt_of
from ollamalab.loadgen import LoadGenerator
from ollamalab.metrics import completed_rps
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome, RequestRecord
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import ServerSettings

SHAPE = PromptShape(prompt_tokens=20, num_predict=6)
GATEWAY = "gateway"
GATEWAYS = {GATEWAY: {"max_concurrent": 1, "request_timeout": 1.0}}
IN_TIME = Metric(name="answered in time", kind="difference", better="higher")

OK, EMPTY, CANCELLED = Outcome.OK, Outcome.EMPTY, Outcome.CANCELLED
TRUNCATED, ERROR_LINE, HTTP_ERROR, TIMEOUT = (
    Outcome.TRUNCATED,
    Outcome.ERROR_LINE,
    Outcome.HTTP_ERROR,
    Outcome.TIMEOUT,
)


def script(**more: object) -> Script:
    return Script(**{"first_s": 0.002, "gap_s": 0.002, "tokens": 6, "slots": 1, **more})  # type: ignore[arg-type]


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    """A server with one slot, somebody else's as far as the lab knows."""
    async with (
        ScriptedServer(script()) as server,
        open_target(server.url) as target,
        Subject(target, "scripted", seed=1) as opened,
    ):
        yield opened


def asker(subject: Subject) -> Asker:
    return Asker(subject, SHAPE, seed=1)


async def through_a_tap(
    requests: Sequence[Request], *, troubles: dict[int, Trouble] | None = None, faults: dict[int, Fault]
) -> tuple[list[Outcome], list[Outcome]]:
    """Return how each request ended at the client and at the tap."""
    async with (
        ScriptedServer(script(slots=None, faults=faults)) as server,
        Tap(server.url) as tap,
        OllamaConnection(tap.url) as connection,
    ):
        tap.troubles = {prompt_of(requests[index]): trouble for index, trouble in (troubles or {}).items()}
        seen: list[RequestRecord] = []
        for request in requests:  # one after the other, so that the server's plan meets them in order
            generator = LoadGenerator(connection, target=tap.url)
            seen += (await generator.run(lab.at_once(1, 30), [request].__getitem__)).records
        while tap.under_way:  # noqa: ASYNC110 - the client may know of an end before the tap does
            await asyncio.sleep(0.001)
        by_prompt = {passed.prompt: passed.record.outcome for passed in tap.passed}
        return [record.outcome for record in seen], [by_prompt[prompt_of(request)] for request in requests]


# The tap


async def test_a_tap_judges_by_the_same_rules_as_the_client(subject: Subject) -> None:
    """Whatever the server does, both ends of a whole line say the same of it."""
    faults = {1: Fault.BUSY, 2: Fault.EMPTY, 3: Fault.SILENT_END, 4: Fault.ERROR_LINE, 5: Fault.CUT}
    client, server = await through_a_tap(asker(subject).requests(7), faults=faults)
    assert client == server == [OK, HTTP_ERROR, EMPTY, TRUNCATED, ERROR_LINE, TRUNCATED, OK]


async def test_a_lost_answer_is_whole_at_the_server_and_without_text_at_the_client(subject: Subject) -> None:
    client, server = await through_a_tap(asker(subject).requests(3), troubles={1: Trouble.LOSE}, faults={})
    assert client == [OK, TRUNCATED, OK]
    assert server == [OK, OK, OK]


async def test_a_cut_line_ends_on_both_sides(subject: Subject) -> None:
    client, server = await through_a_tap(asker(subject).requests(3), troubles={1: Trouble.CUT}, faults={})
    assert client == [OK, TRUNCATED, OK]
    assert server == [OK, CANCELLED, OK]


async def test_a_client_who_leaves_is_passed_on_to_the_server(subject: Subject) -> None:
    (request,) = asker(subject).requests(1)
    async with (
        ScriptedServer(script(gap_s=3600.0)) as server,
        Tap(server.url) as tap,
        OllamaConnection(tap.url) as connection,
    ):
        generator = LoadGenerator(connection, target=tap.url)
        running = asyncio.create_task(generator.run(lab.at_once(1, 30), lambda _: request))
        await tap.until_text()
        assert tap.under_way == 1
        generator.stop()
        (record,) = (await running).records
        await server.ended(1)
        while tap.under_way:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert record.outcome is CANCELLED
    assert [passed.record.outcome for passed in tap.passed] == [CANCELLED]


async def test_a_slow_reader_gets_the_same_answer(subject: Subject) -> None:
    (request,) = asker(subject).requests(1)
    async with (
        ScriptedServer(script(tokens=2)) as server,
        Tap(server.url, pace_bytes_s=10_000) as tap,
        OllamaConnection(tap.url) as connection,
    ):
        result = await LoadGenerator(connection, target=tap.url).run(lab.at_once(1, 60), lambda _: request)
    assert [record.outcome for record in result.records] == [OK]
    assert len(result.records[0].token_times_s) == 2


async def test_other_requests_pass_unnoted_and_nothing_stays_open() -> None:
    before = open_sockets()
    async with ScriptedServer() as server, Tap(server.url) as tap, OllamaConnection(tap.url) as connection:
        async with await connection.send(Request(method="GET", path="/api/version")) as reply:
            assert b"".join([chunk async for chunk in reply.chunks()])
        assert tap.passed == []
    await asyncio.sleep(0)
    assert open_sockets() == before


async def test_a_tap_before_nobody_hangs_up() -> None:
    async with ScriptedServer() as server:
        gone = server.url
    async with Tap(gone) as tap, OllamaConnection(tap.url) as connection:
        with pytest.raises(UpstreamError):
            await connection.send(Request(method="GET", path="/api/version"))


def test_tls_cannot_be_looked_through() -> None:
    with pytest.raises(SettingsError, match="https://gpu2"):
        Tap("https://gpu2")


# Requests and overloads


def test_every_request_can_be_told_from_any_other(subject: Subject) -> None:
    prompts = [prompt_of(request) for request in asker(subject).requests(50)]
    assert len(set(prompts)) == 50
    assert prompt_of(Request(method="POST", path="/api/generate", body=b"no JSON")) == ""


async def test_an_overload_goes_by_what_the_server_can_do_in_its_block(subject: Subject) -> None:
    """Measured once per block; the last in a line that only grows run out of their clients' patience."""
    async with Ways(subject, {}, pace_bytes_s=400) as ways:
        way = ways.by_name[lab.STRAIGHT]
        rush = Overloads(way, asker(subject), places=1, load=4.0, requests=12, patience=2.0)
        visitor = rush.on(way)
        records = list(await visitor(Visit(index=0, block=0, arm="a")))
        first = dict(rush.capacities_rps)
        await visitor(Visit(index=1, block=0, arm="a"))
        assert rush.capacities_rps == first
        await visitor(Visit(index=2, block=1, arm="a"))
    assert set(rush.capacities_rps) == {0, 1}
    assert {record.outcome for record in records} <= {OK, TIMEOUT}
    assert records[-1].outcome is TIMEOUT
    assert lab.in_time_ratio(records) == sum(record.outcome is OK for record in records) / 12
    assert lab.in_time_ratio([]) is None


async def test_a_server_that_answers_nothing_has_no_capacity(subject: Subject) -> None:
    requests = asker(subject)
    async with (
        ScriptedServer(script(faults=dict.fromkeys(range(9), Fault.BUSY))) as server,
        open_target(server.url) as target,
        Subject(target, "scripted", seed=1) as other,
        Ways(other, {}, pace_bytes_s=400) as ways,
    ):
        way = ways.by_name[lab.STRAIGHT]
        rush = Overloads(way, requests, places=1, load=4.0, requests=2, patience=2.0)
        with pytest.raises(UpstreamError, match="completed none"):
            await rush.load_now()


# Scenarios on a server that is not ours


@pytest.fixture
async def played(subject: Subject) -> AsyncIterator[Scenarios]:
    """Everything that such a server can be brought into, straight and through a gateway."""
    async with Ways(subject, GATEWAYS, pace_bytes_s=2000) as ways:
        scenarios = Scenarios(subject, asker(subject), count=3, deadline_s=60, silence_s=1.0)
        await scenarios.play(ways.by_name.values())
        yield scenarios


async def test_both_accounts_agree_or_say_why_not(played: Scenarios) -> None:
    found = {(one.scenario, one.way): one for one in played.episodes}
    assert len(found) == len(played.episodes) == 12
    assert set(played.not_run) == {NOT_LOADED, KILLED, HANGS}
    assert all("not started by ollamalab" in reason for reason in played.not_run.values())
    for one in played.episodes:
        assert len(one.records) == len(one.served) == 3
        assert one.recovered_s is not None
        assert one.busy_slots is None  # this server does not tell
        assert UNEXPLAINED not in one.causes()
        assert one.is_counted_by_gateway if one.way == GATEWAY else not one.gateway
    outcomes = {key: [record.outcome for record in one.records] for key, one in found.items()}
    assert outcomes["nothing wrong", GATEWAY] == [OK] * 3
    assert outcomes["answer lost", lab.STRAIGHT] == [TRUNCATED, OK, TRUNCATED]
    assert outcomes["answer lost", GATEWAY] == [HTTP_ERROR, OK, HTTP_ERROR]
    assert outcomes["line cut", lab.STRAIGHT] == [TRUNCATED, OK, TRUNCATED]
    assert outcomes["line cut", GATEWAY] == [ERROR_LINE, OK, ERROR_LINE]
    for way in (lab.STRAIGHT, GATEWAY):
        assert outcomes["clients hang up", way] == [CANCELLED] * 3
        lost = found["answer lost", way]
        assert (lost.whole_at_server, lost.whole_at_client) == (3, 1)
    table = lab.tokenless_table(played.episodes)
    assert ("answer lost", lab.STRAIGHT, "ok", 6.0, "truncated", 2) in table.rows


async def test_an_overload_is_an_episode_too(subject: Subject) -> None:
    async with Ways(subject, {GATEWAY: {"max_concurrent": 1, "max_queue": 1}}, pace_bytes_s=400) as ways:
        rush = Overloads(
            ways.by_name[lab.STRAIGHT], asker(subject), places=1, load=4.0, requests=12, patience=2.0
        )
        scenarios = Scenarios(subject, asker(subject), count=3, deadline_s=60, silence_s=1.0)
        load = await rush.load_now()
        episode = await scenarios.overload(ways.by_name[GATEWAY], load)
        processes = [psutil.Process(pid) for pid in ways.by_name[GATEWAY].gateway.pids()]  # type: ignore[union-attr]
    assert len(episode.records) == 12
    assert episode.is_counted_by_gateway
    assert episode.gateway["rejected"] > 0
    assert episode.attempts < 12
    assert "refused before it came to the server" in episode.causes()
    assert not psutil.wait_procs(processes, timeout=30)[1]


# Scenarios on a real engine


@pytest.fixture(scope="module")
async def real() -> AsyncIterator[Subject]:
    settings = ServerSettings(max_queue=1, context_length=512)
    async with (
        open_target("embedded", settings, models=["smollm2:135m"]) as target,
        Subject(target, "smollm2:135m", seed=1) as subject,
    ):
        await lab.preload([subject])
        yield subject


@pytest.fixture(scope="module")
async def real_ways(real: Subject) -> AsyncIterator[Ways]:
    async with Ways(real, {GATEWAY: {"max_concurrent": 1, "request_timeout": 5.0}}, pace_bytes_s=400) as ways:
        yield ways


async def test_a_killed_engine_takes_those_who_wait_inside_the_server_with_it(
    real: Subject, real_ways: Ways
) -> None:
    """Straight, one answer breaks off and the others fail; those in our queue meet the next engine."""
    scenarios = Scenarios(real, asker(real), count=3, deadline_s=120, silence_s=1.0)
    killed = engine_pid(real.target)
    straight = await scenarios.kill(real_ways.by_name[lab.STRAIGHT])
    assert engine_pid(real.target) != killed
    assert Counter(record.outcome for record in straight.records) == {ERROR_LINE: 1, HTTP_ERROR: 2}
    queued = await scenarios.kill(real_ways.by_name[GATEWAY])
    assert sum(record.outcome is ERROR_LINE for record in queued.records) == 1
    assert {record.outcome for record in queued.records} <= {ERROR_LINE, OK, HTTP_ERROR}
    for episode in (straight, queued):
        assert episode.busy_slots == 0
        assert episode.recovered_s is not None
        assert UNEXPLAINED not in episode.causes()


async def test_an_engine_that_hangs_goes_on_and_works_for_nobody(real: Subject, real_ways: Ways) -> None:
    scenarios = Scenarios(real, asker(real), count=2, deadline_s=120, silence_s=0.5)
    stopped = psutil.Process(engine_pid(real.target))
    episode = await scenarios.hang(real_ways.by_name[lab.STRAIGHT])
    assert [record.outcome for record in episode.records] == [TIMEOUT] * 2
    assert episode.busy_slots == 0
    assert episode.recovered_s is not None
    assert engine_pid(real.target) == stopped.pid
    assert stopped.status() != psutil.STATUS_STOPPED


async def test_a_stop_word_empties_an_answer_that_both_sides_call_finished(
    real: Subject, real_ways: Ways
) -> None:
    scenarios = Scenarios(real, asker(real), count=2, deadline_s=120, silence_s=1.0)
    episode = await scenarios.stop_word(real_ways.by_name[GATEWAY])
    assert [record.outcome for record in episode.records] == [EMPTY] * 2
    assert (episode.whole_at_server, episode.whole_at_client) == (2, 2)
    ((_, _, done_there, tokens, seen, n),) = lab.tokenless_table([episode]).rows
    assert (done_there, seen, n) == ("empty", "empty", 2)
    assert tokens is not None


async def test_a_server_without_its_model_refuses_whom_a_queue_in_front_would_hold(
    real: Subject, real_ways: Ways
) -> None:
    """Ollama's own bound: one is being served, one waits for the load, the rest gets 503."""
    scenarios = Scenarios(real, asker(real), count=4, deadline_s=120, silence_s=1.0)
    episode = await scenarios.not_loaded(real_ways.by_name[lab.STRAIGHT])
    assert Counter(record.outcome for record in episode.records) == {OK: 2, HTTP_ERROR: 2}
    errors = [record.error for record in episode.records if record.error]
    assert all("maximum pending requests exceeded" in error for error in errors)


async def test_an_unloaded_server_has_no_engine_to_kill(real: Subject) -> None:
    await real.unload()
    with pytest.raises(TargetError, match="0 engines"):
        engine_pid(real.target)
    assert busy_slots(real.target) == 0
    await lab.preload([real])


def test_an_ollama_whose_engines_cannot_be_known_is_spared_what_befalls_them(tmp_path: Path) -> None:
    """The experiment broke off here with Ollama before v0.30."""
    old = OllamaTarget(ServerSettings(), models=[], inherited={}, chosen={}, port=0, log_folder=tmp_path)
    old.version = "0.24.0"
    reasons = {scenario: why_not(scenario, old) for scenario in (NOT_LOADED, KILLED, HANGS)}
    assert not reasons.pop(NOT_LOADED)
    assert all("cannot be asked" in reason for reason in reasons.values())
    assert busy_slots(old) is None


# What the accounts say


def seen(outcome: Outcome, *, text: bool = False, tokens: int | None = None) -> RequestRecord:
    times = (1.0,) if text else ()
    return replace(done(), outcome=outcome, token_times_s=times, output_tokens=tokens)


@pytest.mark.parametrize(
    ("client", "server", "words"),
    [
        (OK, [OK], ""),
        (EMPTY, [EMPTY], ""),
        (CANCELLED, [CANCELLED], ""),
        (TRUNCATED, [OK], "finished, and lost"),
        (HTTP_ERROR, [OK, OK], "finished, and lost"),
        (TIMEOUT, [OK], "finished as the client gave up"),
        (CANCELLED, [OK], "finished as the client gave up"),
        (TIMEOUT, [CANCELLED], "given up by the client"),
        (TRUNCATED, [CANCELLED], "was not told"),
        (ERROR_LINE, [CANCELLED], "was told"),
        (HTTP_ERROR, [ERROR_LINE], "in other words"),
        (HTTP_ERROR, [], "refused before"),
        (TIMEOUT, [], "given up before"),
        (OK, [], UNEXPLAINED),
        (OK, [ERROR_LINE], UNEXPLAINED),
        (OK, [TRUNCATED, OK], ""),
    ],
)
def test_a_difference_between_the_accounts_has_a_cause(
    client: Outcome, server: list[Outcome], words: str
) -> None:
    found = cause(seen(client), [seen(outcome) for outcome in server])
    assert words in found
    assert bool(words) == bool(found)


def episode(way: str = lab.STRAIGHT, **more: object) -> Episode:
    fields = {
        "scenario": "answer lost",
        "way": way,
        "records": (seen(TRUNCATED), seen(OK, text=True), seen(EMPTY)),
        "served": ((seen(OK, tokens=4),), (seen(OK, tokens=4),), (seen(EMPTY, tokens=1),)),
        "gateway": {},
        "busy_slots": 0,
        "recovered_s": 0.25,
    }
    return Episode(**{**fields, **more})  # type: ignore[arg-type]


def test_the_accounts_are_set_side_by_side() -> None:
    table = lab.accounts_table("accounts", "T", [episode(), episode("gateway", gateway={"completed": 2})])
    reason = "1 finished, and lost on the way to the client"
    assert table.rows[0] == ("answer lost", lab.STRAIGHT, 3, 3, 2, None, 3, 1, reason, 0, 0.25)
    assert table.rows[1][5] == 2


def test_a_gateway_counts_everybody_but_those_who_left_at_once() -> None:
    gone = (seen(TIMEOUT), seen(CANCELLED), seen(OK, text=True))
    served = ((), (), (seen(OK),))
    for counted, is_right in (
        ({}, False),
        ({"completed": 1}, True),
        ({"completed": 1, "cancelled": 2}, True),
    ):
        one = episode(GATEWAY, records=gone, served=served, gateway=counted)
        assert one.is_counted_by_gateway is is_right
    assert not episode(GATEWAY, records=gone, served=served, gateway={"completed": 4}).is_counted_by_gateway


def test_what_is_finished_without_text_is_told_by_both_outcomes() -> None:
    table = lab.tokenless_table([episode()])
    assert table.rows == (
        ("answer lost", lab.STRAIGHT, "ok", 4.0, "truncated", 1),
        ("answer lost", lab.STRAIGHT, "empty", 1.0, "empty", 1),
    )
    said = lab.tokenless_sentence([episode()])
    assert "1 (ok at the server, truncated at the client)" in said
    assert "1 (empty at the server, empty at the client)" in said
    assert lab.tokenless_sentence([]).startswith("No answer")


def test_endings_are_counted_and_the_missing_named() -> None:
    labelled = [replace(record, arm="answer lost, straight") for record in episode().records]
    groups = lab.by_label([episode(records=tuple(labelled))])
    frame = lab.endings_frame(groups)
    assert list(frame.columns) == ["ok", "empty", "truncated"]
    table = lab.endings_table(frame, not_run={"engine killed": "not ours"})
    assert table.rows == (
        ("answer lost, straight", 1, 1, 1, 3, ""),
        ("engine killed", None, None, None, None, "not run: not ours"),
    )
    assert lab.endings_table(frame, not_run={}).rows == (("answer lost, straight", 1, 1, 1, 3),)


def test_titles_and_sentences_carry_their_numbers() -> None:
    episodes = [episode(), episode("gateway")]
    assert lab.trouble_title(episodes).endswith("straight 1 of 3, gateway 1 of 3")
    assert "nothing" not in lab.trouble_title([])
    better = compared(IN_TIME, [(0.5, 0.25)] * 8, arm="gateway, 1 may wait", baseline="straight")
    assert lab.overload_title(better) == "With gateway, 1 may wait, 50% are answered in time, straight 25%"
    assert "+25 points (95 % interval +25…+25, 8 pairs), higher." in lab.overload_sentence(better, load=3)
    worse = compared(IN_TIME, [(0.25, 0.5)] * 8)
    assert "−25 points (95 % interval −25…−25, 8 pairs), lower." in lab.overload_sentence(worse, load=3)
    unclear = compared(IN_TIME, [(0.5, 0.25), (0.25, 0.5)] * 4)
    assert lab.overload_title(unclear) == "How requests end under overload"
    nothing = compared(IN_TIME, [])
    assert "n/a" in lab.overload_sentence(nothing, load=3)
    (row,) = lab.overload_table([better], load=3).rows
    assert row[3] == (25, 25, 25)
    assert lab.overload_table([nothing], load=3).rows[0][3] is None


def test_noise_says_how_many_pairs_an_effect_needs() -> None:
    """Pairs that differ by 10 % either way need hundreds to show 1.6 %; equal ones show nothing of it."""
    times = {"a": [1.0, 1.1] * 4, "b": [1.1, 1.0] * 4}
    noisy = lab.noise_floor(_alone(times), completed_rps, effect=0.016)
    assert (noisy.pairs, noisy.beyond) == (8, 8)
    assert noisy.needed is not None
    assert 300 < noisy.needed < 340  # (2.8 * 0.102 / 0.0159)²
    assert "8 of 8 pairs" in lab.noise_text(noisy)
    quiet = lab.noise_floor(_alone({"a": [1.0] * 8, "b": [1.0] * 8}), completed_rps, effect=0.016)
    assert (quiet.beyond, quiet.needed) == (0, None)
    lost = [replace(record, visit=0, block=0) for record in (failed("a"), failed("b"))]
    nothing = lab.noise_floor(lab.Trials(arms=("a", "b"), records=tuple(lost)), completed_rps, effect=0.016)
    assert nothing.pairs == 0
    assert "not known" in lab.noise_text(nothing)


def _alone(times: dict[str, list[float]]) -> lab.Trials:
    """Return visits of one request that lasts so long."""
    records = [
        done(arm, visit=2 * block + place, block=block, last_s=seconds, end_s=seconds)
        for place, (arm, values) in enumerate(times.items())
        for block, seconds in enumerate(values)
    ]
    return lab.Trials(arms=tuple(times), records=tuple(records))


async def test_an_offer_gives_every_record(subject: Subject) -> None:
    async with Ways(subject, {}, pace_bytes_s=400) as ways:
        records = await offer(ways.by_name[lab.STRAIGHT], asker(subject), lab.at_once(4, 30))
    assert [record.outcome for record in records] == [OK] * 4


async def test_a_short_line_answers_more_than_one_without_an_end(subject: Subject) -> None:
    """With a service of a fixed time: 3 of 14 in time straight, 6 of 14 where one may wait."""
    async with (
        ScriptedServer(script(first_s=0.25, gap_s=0.0, tokens=2)) as server,
        open_target(server.url) as target,
        Subject(target, "scripted", seed=1) as slow,
        Ways(slow, {GATEWAY: {"max_concurrent": 1, "max_queue": 1}}, pace_bytes_s=400) as ways,
    ):
        straight = ways.by_name[lab.STRAIGHT]
        rush = Overloads(straight, asker(subject), places=1, load=3.0, requests=14, patience=2.5)
        ratios = {
            name: lab.in_time_ratio(list(await rush.on(way)(Visit(index=0, block=0, arm=name))))
            for name, way in ways.by_name.items()
        }
    assert (ratios[lab.STRAIGHT] or 0) < (ratios[GATEWAY] or 0)
