"""Two clients in front of one server: what they send, who waits for whom, and what is said of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from lab_samples import E2E, compared, done

from ollamalab import lab
from ollamalab.compare import Visit
from ollamalab.errors import UpstreamError
from ollamalab.hosts import open_target
from ollamalab.lab import PromptShape, Rush, Subject, Trials
from ollamalab.lab.fairness import brief_text, fair_shares, fairness, jain_index, wait_s
from ollamalab.metrics import Slo
from ollamalab.records import Outcome, RequestRecord, ServerTimings
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import QueueSettings

SHAPE = PromptShape(prompt_tokens=20, num_predict=2)
SERVICE_S = 0.1
RUSH = Rush(burst=4, singles=1, load=2.0, capacity_rps=1 / SERVICE_S)
#: Its single request comes next to at once after the burst, so that the first of the burst is still served.
CLOSE = replace(RUSH, load=50.0)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A server with one slot that takes the same time for each request."""
    async with ScriptedServer(Script(first_s=SERVICE_S, gap_s=0.0, tokens=2, slots=1)) as scripted:
        yield scripted


@pytest.fixture
async def subject(server: ScriptedServer) -> AsyncIterator[Subject]:
    async with open_target(server.url) as target, Subject(target, "scripted", seed=0) as opened:
        yield opened


async def visit(subject: Subject, settings: QueueSettings | None, *, is_fair: bool) -> list[RequestRecord]:
    """Return the records of one visit through a new queue."""
    visitor = lab.rushes(subject, lab.way_to(subject, settings), CLOSE, SHAPE, is_fair=is_fair)
    return list(await visitor(Visit(index=0, block=0, arm="a")))


def places_in_line(records: list[RequestRecord], client: str) -> list[int]:
    """Return at which places, in the order of the ends, a client was answered."""
    in_order = sorted(
        (record for record in records if record.end_s is not None), key=lambda r: r.end_s or 0.0
    )
    own = {record.index for record in RUSH.of(client, records)}
    return [place for place, record in enumerate(in_order) if record.index in own]


# What is sent


def test_a_period_is_so_long_that_the_load_is_what_was_asked_for() -> None:
    rush = Rush(burst=6, singles=2, load=2.0, capacity_rps=4.0)
    assert rush.period_s == pytest.approx(1.0)
    assert rush.gap_s == pytest.approx(0.5)
    assert 0 < rush.first_single_s < rush.gap_s
    assert replace(rush, load=0.5).period_s == pytest.approx(4.0)


def test_the_burst_is_numbered_first() -> None:
    records = [replace(done(), index=index) for index in range(5)]
    assert [record.index for record in RUSH.of(lab.BURSTS, records)] == [0, 1, 2, 3]
    assert [record.index for record in RUSH.of(lab.SINGLES, records)] == [4]


def test_a_clients_mean_response_leaves_the_other_client_out() -> None:
    records = [replace(done(end_s=2.0), index=index) for index in range(4)]
    records.append(replace(done(end_s=9.0), index=4))
    assert RUSH.mean_response(lab.BURSTS)(records) == pytest.approx(2.0)
    assert RUSH.mean_response(lab.SINGLES)(records) == pytest.approx(9.0)
    assert RUSH.mean_response(lab.SINGLES)(records[:4]) is None


def test_equal_words_get_different_nonces() -> None:
    """The prompt cache must not answer; the words alone are as many as were asked for."""
    nonces = random.Random(1)
    one, other = (brief_text(random.Random(5), 24, nonces) for _ in range(2))
    assert one != other
    assert one[9:] == other[9:]
    assert len(one.partition(", ")[2].split()) == 9


# Who gets what


@pytest.mark.parametrize(
    ("amount", "demands", "shares"),
    [
        (3.0, [4, 1], [2, 1]),
        (2.0, [4, 1], [1, 1]),
        (5.0, [4, 1], [4, 1]),
        (0.0, [4, 1], [0, 0]),
        (6.0, [1, 9, 3], [1, 2.5, 2.5]),
    ],
)
def test_nobody_gets_more_than_he_wants_and_the_rest_is_shared(
    amount: float, demands: list[float], shares: list[float]
) -> None:
    assert fair_shares(amount, demands) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("values", "index"), [([1, 1], 1.0), ([2, 0], 0.5), ([1, 0, 0, 0], 0.25), ([3, 1], 0.8), ([0, 0], None)]
)
def test_jains_index_is_1_for_equals_and_1_of_n_for_one_alone(
    values: list[float], index: float | None
) -> None:
    assert jain_index(values) == (index and pytest.approx(index))


def test_only_what_began_within_the_period_was_got() -> None:
    """Two turns in a period: both to the burst is unfair, one each is fair."""
    rush = replace(RUSH, capacity_rps=1.0)  # a period of 2.5 s

    def began(*moments_s: float) -> list[RequestRecord]:
        return [
            replace(done(first_s=moment, last_s=moment, end_s=moment), index=index, visit=0)
            for index, moment in enumerate(moments_s)
        ]

    assert fairness(began(1.0, 2.0, 3.0, 4.0, 5.0), rush) == pytest.approx(0.5)
    assert fairness(began(1.0, 3.0, 4.0, 5.0, 2.0), rush) == pytest.approx(1.0)
    assert fairness(began(3.0, 3.0, 4.0, 5.0, 6.0), rush) is None


def test_a_wait_is_the_response_without_the_servers_work() -> None:
    record = done(end_s=2.0, server=ServerTimings(prompt_eval_s=0.25, eval_s=0.5))
    assert wait_s(record) == pytest.approx(1.25)
    assert wait_s(replace(record, server=ServerTimings(eval_s=0.5))) == pytest.approx(1.5)
    assert wait_s(replace(record, server=ServerTimings(eval_s=3.0))) == 0.0
    assert wait_s(done()) is None


# Through a queue


async def test_only_a_queue_that_knows_the_clients_lets_one_pass_the_others_burst(
    server: ScriptedServer, subject: Subject
) -> None:
    """Straight or in order of arrival the single request is answered last; fairly it is second."""
    settings = QueueSettings(max_concurrent=1)
    for way, is_fair, place in ((None, True, 4), (settings, False, 4), (settings, True, 1)):
        records = await visit(subject, way, is_fair=is_fair)
        assert [record.outcome for record in records] == [Outcome.OK] * 5
        assert places_in_line(records, lab.SINGLES) == [place]
    assert len(server.log) == 15


async def test_a_full_queue_refuses_whom_its_order_names(server: ScriptedServer, subject: Subject) -> None:
    """In order of arrival the last to come; fairly, the last of whoever has most waiting."""
    settings = QueueSettings(max_concurrent=1, max_queue=3)
    fifo = await visit(subject, settings, is_fair=False)
    fair = await visit(subject, settings, is_fair=True)
    refused = [
        {record.index: record.status for record in way if record.status != 200} for way in (fifo, fair)
    ]
    assert refused == [{4: 503}, {3: 429}]
    assert {record.outcome for record in fifo[4:] + fair[3:4]} == {Outcome.HTTP_ERROR}
    assert "client 'bursts' had the most requests waiting" in (fair[3].error or "")
    assert len(server.log) == 8


async def test_a_server_that_fails_is_on_record_as_such(subject: Subject) -> None:
    """A queue's refusals are answers; a broken connection is none."""
    async with (
        ScriptedServer(Script(first_s=0.0, tokens=2, faults={0: Fault.RESET})) as broken,
        open_target(broken.url) as target,
        Subject(target, "scripted", seed=0) as opened,
    ):
        records = await visit(opened, QueueSettings(max_concurrent=1), is_fair=True)
    assert records[0].outcome is not Outcome.HTTP_ERROR
    assert [record.outcome for record in records].count(Outcome.OK) == 4


async def test_capacity_is_what_a_server_completes_when_it_always_has_something_to_do(
    server: ScriptedServer, subject: Subject
) -> None:
    rate = await lab.capacity_rps(subject, SHAPE, places=1, requests=3)
    assert 0 < rate <= 1.05 / SERVICE_S
    assert len(server.log) == 3
    assert len(subject.health) == 1


async def test_without_an_answer_there_is_no_capacity() -> None:
    async with (
        ScriptedServer(Script(first_s=0.0, tokens=2, faults={0: Fault.BUSY, 1: Fault.BUSY})) as busy,
        open_target(busy.url) as target,
        Subject(target, "scripted", seed=0) as opened,
    ):
        with pytest.raises(UpstreamError, match="completed none of 2 requests: HTTP 503"):
            await lab.capacity_rps(opened, SHAPE, places=1, requests=2)


async def test_a_queue_learns_that_a_server_has_one_slot(subject: Subject) -> None:
    learnt = await lab.learn(subject, SHAPE, clients=2, requests=6)
    assert (learnt.places, learnt.requests) == (1, 6)
    assert learnt.most_at_once == 2
    table = lab.learnt_table("learnt", "Learnt", {"1 slot": learnt})
    assert table.rows == (("1 slot", 1, 2, 6),)
    assert lab.learnt_sentence({"1 slot": learnt}) == "Places that a queue learnt by itself: 1 slot: 1."


# What is shown


def trials() -> tuple[Trials, Rush]:
    """Return one visit in which the single request was answered second, and one of the burst refused."""
    rush = replace(RUSH, capacity_rps=1.0)
    ends_s = {0: 1.0, 4: 2.0, 1: 3.0, 2: 4.0}
    records = [
        replace(done("fair", visit=0, block=0, first_s=end, last_s=end, end_s=end), index=index)
        for index, end in ends_s.items()
    ]
    refused = replace(records[0], index=3, outcome=Outcome.HTTP_ERROR, first_token_s=None, status=429)
    return Trials(arms=("fair",), records=(*records, refused)), rush


def test_tables_tell_the_clients_apart_and_count_refusals() -> None:
    shown, rush = trials()
    limit = Slo(response_s=2.5)
    table = lab.clients_table("clients", "Clients", shown, {"fair": rush}, limit)
    bursts, singles = table.rows
    assert [bursts[1], bursts[4], bursts[6], bursts[7]] == [lab.BURSTS, 4.0, 1, 4]
    assert bursts[3] == pytest.approx(8 / 3)
    assert (singles[1], singles[3], singles[6], singles[7]) == (lab.SINGLES, 2.0, 0, 1)
    assert "within 2.50 s" in table.caption
    (row,) = lab.fairness_table("fairness", "Fairness", shown, {"fair": rush}, limit).rows
    assert list(row) == ["fair", 2.0, 0.4, 0.8, 1, 1.0, 1]


def test_the_curve_has_a_point_per_way_and_load() -> None:
    shown, rush = trials()
    points = lab.load_points(shown, {"fair queue": {"fair": rush}}, lab.SINGLES)
    assert points[["series", "x", "value"]].values.tolist() == [["fair queue", 2.0, 2.0]]


def test_the_title_names_a_gain_only_where_it_is_shown() -> None:
    gain = compared(E2E, [(0.5 + 0.01 * n, 1.0) for n in range(8)], arm="fair", baseline="FIFO")
    none = compared(E2E, [(1.0 + (-1) ** n * 0.1, 1.0) for n in range(8)])
    assert lab.fairness_title(gain).startswith("Fair order cuts the response beside bursts to 5")
    assert lab.fairness_title(none) == "Responses to the client who sends now and then"
    assert "fair against FIFO: 0.5" in lab.fairness_sentence(gain)
