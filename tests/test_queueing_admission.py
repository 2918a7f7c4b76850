"""Who goes next, who waits, who is refused: against a slow and obvious model, and law by law."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ollamalab.errors import QueueFull, SettingsError, ShareExceeded, WaitTimeout
from ollamalab.protocol.bodies import SERVER_BUSY
from ollamalab.queueing.admission import Admission, Applicant
from ollamalab.queueing.ticket import State, Ticket
from ollamalab.settings import QueueSettings

LANES = ("small", "large")
CLIENTS = ("ann", "ben", "cem", "dot")
PRIORITIES = (0, 4, 5, 9)


def admission(*, places: int = 1, **changes: float) -> Admission:
    """A queue with so many places in every lane."""
    return Admission(QueueSettings(**changes), lambda _lane: places)  # type: ignore[arg-type]


def arrive(queue: Admission, client: str = "ann", *, at_s: float = 0.0, **about: object) -> Ticket:
    """One request more for the small model."""
    return queue.arrive(Applicant(lane="small", client=client, **about), at_s)[0]  # type: ignore[arg-type]


def serve_all(queue: Admission, *, first: Ticket, cost_tokens: float | None = None) -> list[Ticket]:
    """End one request after the other; return them in the order of service."""
    served = [first]
    for ticket in served:
        served += queue.release(ticket, State.COMPLETED, ticket.granted_s or 0.0, cost_tokens=cost_tokens)
    return served


@dataclass
class Band:
    """A model of one priority in one lane: plain numbers, no heaps."""

    served: Counter[str] = field(default_factory=Counter)
    level: float = 0.0


class SlowQueue:
    """What the queue should do, by searching through everything each time."""

    def __init__(self, rules: QueueSettings) -> None:
        self.rules = rules
        self.waiting: list[Ticket] = []
        self.active: list[Ticket] = []
        self.bands: dict[tuple[str, int], Band] = {}

    def of(
        self, tickets: Sequence[Ticket], lane: str, priority: int, client: str | None = None
    ) -> list[Ticket]:
        return [
            one
            for one in tickets
            if (one.lane, one.priority) == (lane, priority) and client in (None, one.client)
        ]

    def add(self, ticket: Ticket) -> None:
        key = (ticket.lane, ticket.priority)
        if not self.of(self.waiting, *key) and not self.of(self.active, *key):
            self.bands[key] = Band()
        band = self.bands[key]
        if not self.of(self.waiting, *key, ticket.client):
            band.served[ticket.client] = max(band.served[ticket.client], band.level)  # type: ignore[assignment]
        self.waiting.append(ticket)

    def next(self, lane: str, now_s: float) -> Ticket:
        """Whose turn it is in a lane."""
        ours = [one for one in self.waiting if one.lane == lane]
        oldest = {
            priority: min((one for one in ours if one.priority == priority), key=lambda one: one.number)
            for priority in {one.priority for one in ours}
        }
        aged = {
            priority: max(0, priority - math.floor((now_s - one.arrived_s) / self.rules.ageing_s))
            for priority, one in oldest.items()
        }
        priority = min(oldest, key=lambda band: (aged[band], oldest[band].number))
        band = self.bands[lane, priority]

        def counter(client: str) -> float:
            booked = sum(one.cost_tokens for one in self.of(self.active, lane, priority, client))
            return band.served[client] + booked

        return min(
            self.of(ours, lane, priority),
            key=lambda one: (
                counter(one.client),
                *self.rank(self.head(one)),
                *self.rank(one),
            ),
        )

    def head(self, ticket: Ticket) -> Ticket:
        """The first of a client's requests."""
        theirs = self.of(self.waiting, ticket.lane, ticket.priority, ticket.client)
        return min(theirs, key=self.rank)

    @staticmethod
    def rank(ticket: Ticket) -> tuple[float, int]:
        return (ticket.deadline_s, ticket.number)

    def grant(self, ticket: Ticket) -> None:
        band = self.bands[ticket.lane, ticket.priority]
        band.level = max(band.level, band.served[ticket.client])
        self.waiting.remove(ticket)
        self.active.append(ticket)

    def settle(self, ticket: Ticket, cost: float) -> None:
        self.active.remove(ticket)
        self.bands[ticket.lane, ticket.priority].served[ticket.client] += cost  # type: ignore[assignment]


class QueueMachine(RuleBasedStateMachine):
    """Any sequence of arrivals, ends, departures and changes of capacity."""

    def __init__(self) -> None:
        super().__init__()
        rules = QueueSettings(max_queue=6, queue_timeout_s=40, ageing_s=3)
        self.places = dict.fromkeys(LANES, 2)
        self.queue = Admission(rules, lambda lane: self.places[lane])
        self.slow = SlowQueue(rules)
        self.now_s = 0.0
        self.arrivals = 0
        self.ends: Counter[State] = Counter()

    @rule(
        lane=st.sampled_from(LANES),
        client=st.sampled_from(CLIENTS),
        priority=st.sampled_from(PRIORITIES),
        allowed_s=st.none() | st.integers(-1, 60),
        cost=st.integers(1, 50),
    )
    def comes(self, lane: str, client: str, priority: int, allowed_s: int | None, cost: int) -> None:
        deadline_s = None if allowed_s is None else self.now_s + allowed_s
        applicant = Applicant(
            lane=lane, client=client, priority=priority, deadline_s=deadline_s, cost_tokens=cost
        )
        held = Counter(one.client for one in self.slow.waiting)
        self.arrivals += 1
        try:
            ticket, moved = self.queue.arrive(applicant, self.now_s)
        except (WaitTimeout, QueueFull) as error:
            self.check_refusal(error, client, deadline_s)
            return
        if pushed := [one for one in moved if one.state is State.REJECTED]:
            (loser,) = pushed
            assert held.total() == self.queue.settings.max_queue
            assert held[loser.client] == max(held.values()) >= held[client] + 2
            assert loser.number == max(one.number for one in self.slow.waiting if one.client == loser.client)
            self.slow.waiting.remove(loser)
            self.ends[State.REJECTED] += 1
        self.slow.add(ticket)
        granted = [ticket] if ticket.state is State.ACTIVE and ticket not in moved else []
        self.check_moves(granted + [one for one in moved if one.state is not State.REJECTED], lane)

    def check_refusal(self, error: Exception, client: str, deadline_s: float | None) -> None:
        """A new request is refused only for a reason, and that reason is the one told."""
        held = Counter(one.client for one in self.slow.waiting)
        others = set(held) - {client}
        if isinstance(error, WaitTimeout):
            self.ends[State.TIMED_OUT] += 1
            assert deadline_s is not None
            assert deadline_s <= self.now_s
            return
        self.ends[State.REJECTED] += 1
        if isinstance(error, ShareExceeded):
            assert others
            assert held[client] >= self.queue.settings.share
        else:
            assert held.total() == self.queue.settings.max_queue
            assert max((held[other] for other in others), default=0) < held[client] + 2

    @precondition(lambda self: self.slow.active)
    @rule(data=st.data(), cost=st.none() | st.integers(0, 90))
    def ends_one(self, data: st.DataObject, cost: int | None) -> None:
        ticket = data.draw(st.sampled_from(self.slow.active))
        state = data.draw(st.sampled_from((State.COMPLETED, State.FAILED, State.CANCELLED)))
        moved = self.queue.release(ticket, state, self.now_s, cost_tokens=cost)
        self.ends[state] += 1
        self.slow.settle(ticket, ticket.cost_tokens if cost is None else cost)
        self.check_moves(moved, ticket.lane)

    @precondition(lambda self: self.slow.waiting)
    @rule(data=st.data(), state=st.sampled_from((State.CANCELLED, State.TIMED_OUT)))
    def leaves(self, data: st.DataObject, state: State) -> None:
        ticket = data.draw(st.sampled_from(self.slow.waiting))
        self.queue.leave(ticket, state)
        self.slow.waiting.remove(ticket)
        self.ends[state] += 1

    @rule(step_s=st.integers(0, 15))
    def time_passes(self, step_s: int) -> None:
        self.now_s += step_s

    @rule(lane=st.sampled_from(LANES), places=st.integers(1, 4))
    def capacity_changes(self, lane: str, places: int) -> None:
        self.places[lane] = places
        self.check_moves(self.queue.dispatch(lane, self.now_s), lane)

    def check_moves(self, moved: list[Ticket], lane: str) -> None:
        """What was granted or dropped is what the slow queue says, one by one."""
        for ticket in moved:
            assert self.slow.next(lane, self.now_s) is ticket
            if ticket.state is State.TIMED_OUT:
                assert ticket.expires_s <= self.now_s
                self.slow.waiting.remove(ticket)
                self.ends[State.TIMED_OUT] += 1
            else:
                assert ticket.state is State.ACTIVE
                assert ticket.expires_s > self.now_s
                self.slow.grant(ticket)
                assert sum(one.lane == lane for one in self.slow.active) <= self.places[lane]
        if any(one.lane == lane for one in self.slow.waiting):
            assert sum(one.lane == lane for one in self.slow.active) >= self.places[lane], "a place is idle"

    @invariant()
    def nothing_is_lost_and_bounds_hold(self) -> None:
        seen = self.queue.statistics({})
        assert seen.total == self.arrivals
        assert (seen.waiting, seen.active) == (len(self.slow.waiting), len(self.slow.active))
        ends = (seen.completed, seen.failed, seen.rejected, seen.timed_out, seen.cancelled)
        assert sum(ends) + seen.waiting + seen.active == seen.total
        assert ends == tuple(
            self.ends[state]
            for state in (
                State.COMPLETED,
                State.FAILED,
                State.REJECTED,
                State.TIMED_OUT,
                State.CANCELLED,
            )
        )
        assert seen.waiting <= self.queue.settings.max_queue
        assert seen.peak_waiting <= self.queue.settings.max_queue
        assert all(one.state is State.WAITING for one in self.slow.waiting)
        assert all(one.state is State.ACTIVE for one in self.slow.active)

    def teardown(self) -> None:
        """Whoever is still there can leave, and then nothing is remembered."""
        while self.slow.active or self.slow.waiting:
            for ticket in list(self.slow.active):
                self.slow.active.remove(ticket)
                for one in self.queue.release(ticket, State.COMPLETED, self.now_s):
                    self.slow.waiting.remove(one)
                    if one.state is State.ACTIVE:
                        self.slow.active.append(one)
        assert (self.queue.waiting, self.queue.active) == (0, 0)
        assert self.queue.statistics({}).limits == {}


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_the_urgent_go_first_then_clients_in_turn_then_the_earliest_deadline() -> None:
    queue = admission()
    first = arrive(queue, "ann")
    late = arrive(queue, "ann", priority=9)
    second = arrive(queue, "ann")
    hurried = arrive(queue, "ann", deadline_s=30.0)
    other = arrive(queue, "ben")
    urgent = arrive(queue, "cem", priority=0)
    assert serve_all(queue, first=first) == [first, urgent, other, hurried, second, late]


def test_fairness_counts_tokens_not_requests() -> None:
    """One client's answers are ten times as long: it gets a tenth of the turns."""
    queue = admission(max_queue=1000)
    first = arrive(queue, "none", cost_tokens=1)
    for _ in range(100):
        arrive(queue, "long", cost_tokens=100)
        arrive(queue, "short", cost_tokens=10)
    turns = [ticket.client for ticket in serve_all(queue, first=first)[1:56]]
    assert (turns.count("long"), turns.count("short")) == (5, 50)


@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.parametrize("truth", [0.1, 1.0, 5.0])
def test_backlogged_clients_differ_by_no_more_than_what_is_in_service(places: int, truth: float) -> None:
    """The bound of fair queues, whatever the estimates: over any stretch, the largest costs in service."""
    queue = admission(places=places, max_queue=10_000)
    costs = {"ann": 80.0, "ben": 50.0, "cem": 30.0}
    active = [arrive(queue, "none", cost_tokens=1) for _ in range(places)]
    for client, cost in costs.items():
        for _ in range(200):
            arrive(queue, client, cost_tokens=cost)
    served = dict.fromkeys(costs, 0.0)
    bound = (places + 1) * max(costs.values()) * max(1.0, truth)
    for _ in range(250):
        ticket = active.pop(0)
        if ticket.client in costs:
            served[ticket.client] += ticket.cost_tokens * truth
        active += queue.release(ticket, State.COMPLETED, 1.0, cost_tokens=ticket.cost_tokens * truth)
        assert max(served.values()) - min(served.values()) <= bound


def test_a_client_that_was_idle_hoards_no_credit() -> None:
    """Ben comes back after Ann alone was served much: they take turns, Ben does not catch up."""
    queue = admission()
    ticket = arrive(queue, "ben", cost_tokens=10)
    annas = [arrive(queue, "ann", cost_tokens=10) for _ in range(40)]
    for _ in range(30):
        (ticket,) = queue.release(ticket, State.COMPLETED, 1.0)
    assert ticket is annas[29]
    for _ in range(6):
        arrive(queue, "ben", cost_tokens=10)
    turns = [one.client for one in serve_all(queue, first=ticket)][1:9]
    assert turns == ["ben", "ann"] * 4


def test_estimates_too_high_do_not_hold_newcomers_back() -> None:
    """Ann booked far more than her answers cost; clients that came meanwhile still go first."""
    queue = admission(places=4)
    annas = [arrive(queue, "ann", cost_tokens=1000) for _ in range(40)][:4]
    newcomers = [arrive(queue, client, cost_tokens=1000) for client in ("ben", "cem", "dot")]
    granted = [one for ann in annas for one in queue.release(ann, State.COMPLETED, 1.0, cost_tokens=3)]
    assert granted[:3] == newcomers


def test_one_who_sends_fifty_at_once_keeps_nobody_else_waiting_longer_than_one_service() -> None:
    """The issue's own case: Ben sends one a second, each service takes one; his is always the next."""
    queue = admission()
    ticket, *_ = [arrive(queue, "ann", cost_tokens=50) for _ in range(50)]
    for second in range(1, 25):
        bens = arrive(queue, "ben", at_s=second - 0.5, cost_tokens=50)
        (ticket,) = queue.release(ticket, State.COMPLETED, float(second))
        assert ticket is bens
        (ticket,) = queue.release(ticket, State.COMPLETED, float(second))
        assert ticket.client == "ann"


def test_waiting_promotes_so_that_nothing_starves() -> None:
    """A stream of urgent requests that never ends holds the least urgent up for nine steps, no longer."""
    queue = admission(ageing_s=2.0, queue_timeout_s=1000)
    ticket = arrive(queue, "ann", priority=0)
    least = arrive(queue, "ben", priority=9)
    for second in range(1, 100):
        arrive(queue, f"client {second}", at_s=float(second), priority=0)
        (ticket,) = queue.release(ticket, State.COMPLETED, float(second))
        if ticket is least:
            break
    assert ticket is least
    assert second == 18


def test_of_bands_that_have_all_aged_to_the_top_the_one_that_waits_longest_goes_first() -> None:
    queue = admission(ageing_s=1.0, queue_timeout_s=1000)
    ticket = arrive(queue, "ann")
    least = arrive(queue, "ben", priority=9)
    urgent = arrive(queue, "cem", at_s=8.0, priority=0)
    assert queue.release(ticket, State.COMPLETED, 12.0) == [least]
    assert queue.release(least, State.COMPLETED, 12.0) == [urgent]


def test_age_does_not_let_one_client_overtake_the_others_of_its_priority() -> None:
    queue = admission(ageing_s=1.0, queue_timeout_s=1000)
    ticket, *_ = [arrive(queue, "ann") for _ in range(20)]
    bens = arrive(queue, "ben", at_s=50.0)
    (ticket,) = queue.release(ticket, State.COMPLETED, 50.0)
    assert ticket is bens


def test_a_full_queue_refuses_at_once_in_ollamas_words_and_loses_nobody() -> None:
    queue = admission(max_queue=3)
    first = arrive(queue)
    waiting = [arrive(queue) for _ in range(3)]
    with pytest.raises(QueueFull) as caught:
        arrive(queue)
    assert type(caught.value) is QueueFull
    assert str(caught.value) == SERVER_BUSY
    assert serve_all(queue, first=first) == [first, *waiting]
    seen = queue.statistics({})
    assert (seen.total, seen.rejected, seen.completed, seen.peak_waiting, seen.peak_active) == (5, 1, 4, 3, 1)


def test_a_queue_without_room_serves_what_can_begin_and_refuses_the_rest() -> None:
    queue = admission(max_queue=0, places=2)
    assert [arrive(queue).state for _ in range(2)] == [State.ACTIVE] * 2
    with pytest.raises(QueueFull):
        arrive(queue)
    assert queue.statistics({}).peak_waiting == 0


def test_while_others_wait_a_client_may_fill_its_share() -> None:
    queue = admission(max_queue=10, share_ratio=0.4)
    arrive(queue)
    for _ in range(3):
        arrive(queue, "ann")
    arrive(queue, "ben")
    arrive(queue, "ann")
    with pytest.raises(ShareExceeded, match="client 'ann' has 4 requests waiting"):
        arrive(queue, "ann")
    assert arrive(queue, "ben").state is State.WAITING


def test_a_client_alone_may_fill_the_queue_and_makes_room_when_another_comes() -> None:
    queue = admission(max_queue=5)
    arrive(queue, "ann")
    annas = [arrive(queue, "ann") for _ in range(5)]
    bens, moved = queue.arrive(Applicant(lane="large", client="none"), 0.0)  # a free lane: pushes nobody out
    assert (bens.state, moved) == (State.ACTIVE, [])
    bens, moved = queue.arrive(Applicant(lane="small", client="ben"), 0.0)
    assert moved == [annas[-1]]
    assert (bens.state, annas[-1].state) == (State.WAITING, State.REJECTED)
    refusal = queue.refusal(annas[-1], 0.0)
    assert isinstance(refusal, ShareExceeded)
    assert refusal.retry_after_s is not None
    assert "client 'ann' had the most requests waiting" in str(refusal)


def test_a_full_queue_of_many_clients_is_full_for_one_more() -> None:
    queue = admission(max_queue=4)
    for client in ("none", "a", "b", "c", "d"):
        arrive(queue, client)
    with pytest.raises(QueueFull) as caught:
        arrive(queue, "e")
    assert not isinstance(caught.value, ShareExceeded)


def test_room_comes_after_those_ahead_were_served() -> None:
    """Retry-After: (waiting + 1) x mean service / places, at most the queue timeout."""
    queue = admission(places=2, queue_timeout_s=60)
    assert queue.retry_after_s("small") == 60
    queue.history.note("small", service_s=4.0, output_tokens=None)
    for _ in range(2 + 5):
        arrive(queue)
    assert queue.retry_after_s("small") == 12.0
    for _ in range(40):
        arrive(queue)
    assert queue.retry_after_s("small") == 60


def test_who_has_waited_too_long_is_refused_and_not_served() -> None:
    queue = admission(queue_timeout_s=10)
    first = arrive(queue)
    late = arrive(queue, "ben", deadline_s=3.0)
    too_long = arrive(queue, "cem")
    in_time = arrive(queue, "dot", at_s=5.0)
    moved = queue.release(first, State.COMPLETED, 11.0)
    assert moved == [late, too_long, in_time]
    assert [one.state for one in moved] == [State.TIMED_OUT, State.TIMED_OUT, State.ACTIVE]
    assert "deadline of the request passed after 11.0 s" in str(queue.refusal(late, 11.0))
    assert "busy with other requests for 11.0 s" in str(queue.refusal(too_long, 11.0))


def test_a_deadline_in_the_past_is_refused_at_once() -> None:
    queue = admission()
    with pytest.raises(WaitTimeout, match="had passed before it came"):
        arrive(queue, at_s=5.0, deadline_s=5.0)
    assert (queue.statistics({}).timed_out, queue.active) == (1, 0)


def test_lanes_have_places_of_their_own_and_one_bound_together() -> None:
    queue = admission(max_queue=2)
    small = arrive(queue)
    large, _ = queue.arrive(Applicant(lane="large"), 0.0)
    assert (small.state, large.state) == (State.ACTIVE, State.ACTIVE)
    arrive(queue)
    queue.arrive(Applicant(lane="large"), 0.0)
    with pytest.raises(QueueFull):
        arrive(queue)


def test_clients_are_told_apart_and_their_number_is_bounded() -> None:
    queue = admission(max_queue=5000)
    first = arrive(queue, "ann", cost_tokens=3)
    arrive(queue, "ben", at_s=1.0)
    queue.release(first, State.COMPLETED, 5.0, cost_tokens=7)
    ann, ben = (queue.statistics({}).clients[name] for name in ("ann", "ben"))
    assert (ann.requests, ann.served, ann.tokens, ann.wait_max_s) == (1, 1, 7.0, 0.0)
    assert (ben.served, ben.wait_mean_s, ben.wait_max_s, ben.tokens) == (1, 4.0, 4.0, 0.0)
    for number in range(2000):
        arrive(queue, f"client {number}", at_s=6.0)
    assert len(queue.statistics({}).clients) == 256
    assert "client 1999" in queue.statistics({}).clients


def test_ever_new_clients_leave_nothing_behind() -> None:
    """A counter is remembered for 1,024 idle clients of a band that is never empty, no more."""
    queue = admission(places=2, max_queue=10)
    ticket = arrive(queue, "stays", deadline_s=None)
    for number in range(3000):
        queue.release(arrive(queue, f"client {number}"), State.COMPLETED, 0.0)
    (band,) = queue._lanes["small"]._bands.values()
    assert len(band.counters()) == 1024 + 1
    queue.release(ticket, State.COMPLETED, 1.0)
    assert not queue._lanes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_concurrent": 0}, "max_concurrent must be 1 to 1024, got 0"),
        ({"max_queue": -1}, "max_queue must be 0 or more, got -1"),
        ({"queue_timeout_s": 0}, "queue_timeout_s must be > 0 and finite, got 0"),
        ({"queue_timeout_s": math.inf}, "queue_timeout_s must be > 0 and finite, got inf"),
        ({"ageing_s": math.nan}, "ageing_s must be > 0 and finite, got nan"),
        ({"share_ratio": 0}, "share_ratio must be above 0 and at most 1, got 0"),
        ({"share_ratio": 1.5}, "share_ratio must be above 0 and at most 1, got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, float], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        QueueSettings(**changes)  # type: ignore[arg-type]
    assert str(caught.value) == words
