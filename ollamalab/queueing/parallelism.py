"""How many requests at once a server can use for a model, learnt from how it answers. Pure.

Ollama tells neither how many slots a model has nor how many of them are taken. Whoever sends one more
than there are slots only moves the waiting to where it is neither fair nor bounded. But a slot too many
shows: the request gets its first token only after another one has ended. So each answer is a *vote* for
or against its *level*, the number of requests at the server when it was sent, itself included:

- A stream that gave its first token before any other request ended has shown that all of them fit.
- An answer under ``/api`` tells when it got its slot: its total time holds something beyond loading,
  prompt and output. It waited for another one if that one's end falls into the later half of this time.
- A stream without these figures was late if another request ended in the later half of its wait for the
  first token. Chance does that too when prompts are long, so such a vote against counts for less.
- A whole answer without them votes by tokens/s: one level more must bring at least 30 % of what it
  would bring if requests did not slow each other down.

A level that holds is never held back for tokens/s: answers of different kinds have different rates, and
whoever gave a server its slots has decided for what speed.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass

import msgspec

from ollamalab.queueing.work import Work

#: No server gets more at once, whatever it seems to bear.
MOST = 64

#: Share of the way to certainty that a vote moves a level's score; three in a row turn it.
_VOTE = 0.25
_DOUBTFUL_VOTE = 0.1

#: Of the time that answers under ``/api`` leave unexplained, this much is Ollama's own (2 to 14 ms where
#: nothing waits, less for short work). Beyond, it is a wait for a slot only if an end goes with it: engines
#: that are busy take up to 150 ms to begin with a request that has its slot.
_OVERHEAD_S = 0.02
_OVERHEAD_RATIO = 0.25

#: An end at the server may be seen here so much later than the next one's begin that it made possible.
_LAG_S = 0.02

#: Moments of ends that are remembered.
_ENDS = 4 * MOST

#: A score that is as good as 1: another vote for its level changes nothing.
_CERTAIN = 0.999

#: Votes on the level reached until the next one is tried again: doubled by each failure.
_PATIENCE = 8
_MOST_PATIENCE = 64

#: Answers at each of two levels before their tokens/s are compared, and how many are remembered.
_RATES = 10
_MOST_RATES = 40
_REQUIRED_GAIN = 0.3


class Flight(msgspec.Struct, eq=False):
    """One request at the server.

    Attributes:
        level: How many were there when it was sent, itself included.
        sent_s: When it was sent.
        request_seconds: Of all requests of the model until then.
        has_begun: Whether a stream has given its first token.
        is_late: Whether that waited for another request's end; None if it cannot be told.
    """

    level: int
    sent_s: float
    request_seconds: float
    has_begun: bool = False
    is_late: bool | None = None


@dataclass(slots=True)
class _Rate:
    """Tokens/s of all requests together, as seen while so many were at the server."""

    answers: int = 0
    mean_log: float = 0.0

    def note(self, log_rate: float) -> None:
        self.answers = min(self.answers + 1, _MOST_RATES)
        self.mean_log += (log_rate - self.mean_log) / self.answers


class Parallelism:
    """What one model at one server can use; starts with one place and a second on trial.

    Attributes:
        active: Requests at the server now.
        learnt: How many at once hold, as far as is known; at least 1.
    """

    def __init__(self) -> None:
        self.active = 0
        self.learnt = 1
        self._scores: list[float | None] = [1.0]  # of levels 1, 2, 3 ...; -1 not, 1 yes, None not tried
        self._certain = 1  # levels, from the first, whose scores are as good as 1
        self._rates: defaultdict[int, _Rate] = defaultdict(_Rate)
        self._is_judged_by_rate = False
        self._request_seconds = 0.0
        self._counted_until_s = 0.0
        self._ends_s: deque[float] = deque(maxlen=_ENDS)
        self._patience = _PATIENCE
        self._votes_until_trial = 0

    @property
    def limit(self) -> int:
        """How many may be sent at once: what is learnt, and one more while that is on trial."""
        learnt = self.learnt
        is_ready = not self._is_judged_by_rate or self._rates[learnt].answers >= _RATES
        return min(learnt + (self._is_on_trial(learnt) and is_ready), MOST)

    def sent(self, now_s: float) -> Flight:
        """Note that a request goes to the server."""
        self._request_seconds += self.active * (now_s - self._counted_until_s)
        self._counted_until_s = now_s
        self.active += 1
        return Flight(self.active, now_s, self._request_seconds)

    def first_token(self, flight: Flight, now_s: float) -> None:
        """Note that a stream begins to say something."""
        flight.has_begun = True
        if not self._has_end_between(flight.sent_s, now_s):
            flight.is_late = False
            self._vote(flight.level, holds=True, weight=_VOTE)
        elif self._has_end_between((flight.sent_s + now_s) / 2, now_s):
            flight.is_late = True

    def ended(self, flight: Flight, now_s: float, work: Work | None) -> None:
        """Note that a request has left the server.

        Args:
            flight: Which.
            now_s: When.
            work: What it tells; None if it was not answered to the end.
        """
        self._request_seconds += self.active * (now_s - self._counted_until_s)
        self._counted_until_s = now_s
        self.active -= 1
        if work is not None:
            self._judge(flight, now_s, work)
        self._ends_s.append(now_s)

    def _judge(self, flight: Flight, now_s: float, work: Work) -> None:
        if work.slot_wait_s is not None and work.busy_s is not None:
            waited = self._has_waited(flight, work.slot_wait_s, work.busy_s, work.load_s or 0.0)
            if waited or not flight.has_begun:  # a stream that was in time has voted already
                self._vote(flight.level, holds=not waited, weight=_VOTE)
        elif flight.is_late:
            self._vote(flight.level, holds=False, weight=_DOUBTFUL_VOTE)
        elif not flight.has_begun:
            self._judge_by_rate(flight, now_s, work.output_tokens)

    def _has_waited(self, flight: Flight, slot_wait_s: float, busy_s: float, load_s: float) -> bool:
        if slot_wait_s <= min(_OVERHEAD_S, _OVERHEAD_RATIO * busy_s):
            return False
        slot_s = flight.sent_s + load_s + slot_wait_s
        return self._has_end_between(slot_s - slot_wait_s / 2, slot_s + _LAG_S)

    def _has_end_between(self, after_s: float, until_s: float) -> bool:
        """Return whether a request ended then; of the last ends only, which is as far back as it matters."""
        for end_s in reversed(self._ends_s):
            if end_s <= after_s:
                return False
            if end_s <= until_s:
                return True
        return False

    def _is_on_trial(self, learnt: int) -> bool:
        return learnt == len(self._scores) or self._scores[learnt] is None

    def _vote(self, level: int, *, holds: bool, weight: float) -> None:
        """Count a vote: if a level holds, so do those below it; if it does not, nor do those above."""
        self._is_judged_by_rate = False
        self._weigh(level, 1.0 if holds else -1.0, weight)

    def _weigh(self, level: int, towards: float, weight: float) -> None:
        before = self.learnt
        was_on_trial = self._is_on_trial(before)
        if towards < 0 or level > self._certain:
            self._score(level, towards, weight)
        learnt = self.learnt
        if learnt > before:
            self._patience = _PATIENCE
            self._open_trial(learnt)
        elif learnt < before:
            self._patience = self._votes_until_trial = _PATIENCE
        elif was_on_trial and not self._is_on_trial(learnt):
            self._votes_until_trial = self._patience
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        elif not was_on_trial and level >= learnt:
            self._votes_until_trial -= 1
            if self._votes_until_trial <= 0:
                self._open_trial(learnt)

    def _score(self, level: int, towards: float, weight: float) -> None:
        """Move the scores of the levels that a vote is about; find out which hold now."""
        scores = self._scores
        scores.extend([None] * (level - len(scores)))
        for at in range(level) if towards > 0 else range(max(level - 1, 1), len(scores)):
            score = scores[at] or 0.0
            scores[at] = score + weight * (towards - score)
        levels = len(scores)
        self.learnt = next((at for at, score in enumerate(scores) if score is None or score < 0), levels)
        doubtful = (at for at, score in enumerate(scores) if score is None or score < _CERTAIN)
        self._certain = next(doubtful, levels)

    def _open_trial(self, learnt: int) -> None:
        del self._scores[learnt:]
        self._certain = min(self._certain, learnt)
        self._rates.pop(learnt + 1, None)

    def _judge_by_rate(self, flight: Flight, now_s: float, output_tokens: int | None) -> None:
        """Compare the tokens/s at the answer's mean level with those one level below."""
        lasted_s = now_s - flight.sent_s
        if not output_tokens or lasted_s <= 0:
            return
        self._is_judged_by_rate = True
        # Little's law: requests at once times tokens per second of each are the tokens/s of all.
        at_once = (self._request_seconds - flight.request_seconds) / lasted_s
        level = max(1, round(at_once))
        rate = self._rates[level]
        rate.note(math.log(at_once * output_tokens / lasted_s))
        below = self._rates[level - 1] if level > 1 else rate
        if level == 1:
            self._weigh(1, 1.0, _VOTE)
        elif min(rate.answers, below.answers) >= _RATES:
            pays = rate.mean_log - below.mean_log >= math.log1p(_REQUIRED_GAIN / (level - 1))
            self._weigh(level, 1.0 if pays else -1.0, _VOTE)
