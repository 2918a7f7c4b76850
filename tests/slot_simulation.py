"""A server with slots and continuous batching, simulated: what the learning of parallelism is tested on."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import Enum

from ollamalab.queueing.parallelism import Flight, Parallelism
from ollamalab.queueing.work import Work


class Answers(Enum):
    """Which answers the clients ask for, hence what can be told from them."""

    OLLAMA_STREAM = "streams under /api"
    OLLAMA_WHOLE = "whole answers under /api"
    OPENAI_STREAM = "streams under /v1"
    OPENAI_WHOLE = "whole answers under /v1"

    @property
    def is_stream(self) -> bool:
        """Whether a first token can be seen."""
        return self in (Answers.OLLAMA_STREAM, Answers.OPENAI_STREAM)

    @property
    def has_timings(self) -> bool:
        """Whether the server tells how long each part took."""
        return self in (Answers.OLLAMA_STREAM, Answers.OLLAMA_WHOLE)


@dataclass(eq=False, slots=True)
class _Job:
    flight: Flight
    tokens: int
    prompt_s: float
    output_s: float  # at full speed, alone
    started_s: float = 0.0


class SlotSimulation:
    """A server under a demand that never ends, sent to as the learner allows.

    Of k requests in slots together, each runs at k ** (exponent - 1) of the speed it has alone. Waiting
    for a slot is in order of arrival, as in Ollama.

    Attributes:
        slots: May be changed while running; those in a slot stay.
        learnt: After each answer, what the learner had learnt.
        hidden: Requests that waited for a slot inside the server.
    """

    def __init__(
        self,
        slots: int,
        answers: Answers,
        *,
        seed: int = 0,
        exponent: float = 0.7,
        noise: float = 0.1,
        prompt_s: float = 0.3,
        tokens: tuple[int, int] = (50, 300),
        overhead_s: float = 0.005,
    ) -> None:
        self.slots = slots
        self.parallelism = Parallelism()
        self.learnt: list[int] = []
        self.hidden = 0
        self._answers = answers
        self._random = random.Random(seed)
        self._exponent, self._noise, self._prompt_s = exponent, noise, prompt_s
        self._tokens, self._overhead_s = tokens, overhead_s
        self._now_s = 0.0
        self._outside: list[_Job] = []
        self._inside: list[_Job] = []

    def answer(self, count: int) -> list[int]:
        """Run until so many more answers are there; return what was learnt after each."""
        before = len(self.learnt)
        while len(self.learnt) < before + count:
            self._send()
            self._step()
        return self.learnt[before:]

    def _send(self) -> None:
        draw = self._random
        while self.parallelism.active < self.parallelism.limit:
            tokens = draw.randint(*self._tokens)
            output_s = tokens / 100 * math.exp(draw.gauss(0, self._noise))
            prompt_s = self._prompt_s * draw.uniform(0.5, 1.5)
            self._outside.append(_Job(self.parallelism.sent(self._now_s), tokens, prompt_s, output_s))
        self._admit()

    def _admit(self) -> None:
        while self._outside and len(self._inside) < self.slots:
            job = self._outside.pop(0)
            job.started_s = self._now_s
            self.hidden += self._now_s > job.flight.sent_s
            self._inside.append(job)

    def _step(self) -> None:
        """Go to the next moment at which a job begins to speak or ends."""
        speed = len(self._inside) ** (self._exponent - 1)
        step_s = min(job.prompt_s or job.output_s / speed for job in self._inside)
        self._now_s += step_s
        for job in tuple(self._inside):
            if job.prompt_s:
                job.prompt_s = max(0.0, job.prompt_s - step_s)
                if job.prompt_s < 1e-9:
                    job.prompt_s = 0.0
                    if self._answers.is_stream:
                        self.parallelism.first_token(job.flight, self._now_s)
            else:
                job.output_s -= step_s * speed
                if job.output_s < 1e-9:
                    self._end(job)

    def _end(self, job: _Job) -> None:
        self._inside.remove(job)
        self._admit()
        work = Work(output_tokens=job.tokens)
        if self._answers.has_timings:
            work = Work(
                output_tokens=job.tokens,
                slot_wait_s=job.started_s - job.flight.sent_s + self._overhead_s,
                busy_s=self._now_s - job.started_s,
            )
        self.parallelism.ended(job.flight, self._now_s, work)
        self.learnt.append(self.parallelism.learnt)
