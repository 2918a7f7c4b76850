"""Caches in front of one engine: a question asked twice, a load of repeated questions, a stampede.

Whether an answer came from a cache is read from the answer itself: the engine's own durations, in
nanoseconds, are repeated with it. So the calls that an engine had to work on are counted in the same way for
every cache, ours or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate

import pandas as pd

from ollamalab.compare import Comparison
from ollamalab.lab.subject import PromptShape
from ollamalab.lab.trials import Statistic, Trials, mean_of, not_run_text
from ollamalab.metrics import completed, e2e_final_line_s, response_s
from ollamalab.protocol.upstream import Request
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table
from ollamalab.workload import Prompt, draw_prompt, generate_body, inference_request

#: What the requests of ``asked_twice`` are, in order.
FIRST_STREAM, REPEATED_STREAM, FIRST_WHOLE, REPEATED_WHOLE = range(4)

_GENERATE = "/api/generate"
# Requests


def asked(prompt: Prompt, model: str, *, stream: bool) -> Request:
    """Return a prompt as a request to ``/api/generate``, the path that the published nginx set-up caches."""
    return inference_request(_GENERATE, generate_body(prompt, model, stream=stream))


def zipf_draws(rng: random.Random, questions: int, requests: int, *, exponent: float = 1.0) -> list[int]:
    """Return which question each request asks: number k is drawn in proportion to 1 / (k + 1)^exponent."""
    weights = [1 / (rank + 1) ** exponent for rank in range(questions)]
    return rng.choices(range(questions), cum_weights=list(accumulate(weights)), k=requests)


class Questions:
    """Makes the prompts of one experiment: one text, with another number at its end in each of them.

    To a cache every number is another question. The engine has evaluated what they share, as it has with
    a common system prompt, so that a first request is cheap and costs the same wherever it comes.
    """

    def __init__(self, model: str, shape: PromptShape, *, seed: int) -> None:
        """Draw the text.

        Args:
            model: Name of the model as it is sent.
            shape: Lengths.
            seed: Of the text and of the order in which questions repeat.
        """
        self.model = model
        self._seed = seed
        self._prompt = draw_prompt(random.Random(seed), **asdict(shape))
        # Fresh for each run: a server may remember the questions of the run before.
        self._numbers = random.Random()

    def draw(self, count: int) -> list[Prompt]:
        """Return prompts that nobody has asked before."""
        return [self._numbered(f"{self._numbers.randrange(10**9):09d}") for _ in range(count)]

    def _numbered(self, number: str) -> Prompt:
        (message,) = self._prompt.messages
        ended = {**message, "content": f"{message['content']} Number: {number}"}
        return replace(self._prompt, messages=(ended,))

    def twice_each(self) -> list[Request]:
        """Return a new question four times: as a stream, the same again, as a whole, the same again."""
        (prompt,) = self.draw(1)
        return [asked(prompt, self.model, stream=stream) for stream in (True, True, False, False)]

    def streams(self, count: int) -> list[Request]:
        """Return new questions, every one a stream."""
        return [asked(prompt, self.model, stream=True) for prompt in self.draw(count)]

    def stampede(self, clients: int) -> list[Request]:
        """Return a new question so many times, every one a stream."""
        return self.streams(1) * clients

    def zipf(self, prompts: Sequence[Prompt], requests: int) -> list[Request]:
        """Return a load in which these prompts repeat, every one a stream; the seed gives its order."""
        draws = zipf_draws(random.Random(f"{self._seed}:zipf"), len(prompts), requests)
        return [asked(prompts[number], self.model, stream=True) for number in draws]


# What came back


def computed(records: Iterable[RequestRecord]) -> int:
    """Return how many different answers the engine computed for these requests.

    Two computed answers never took the same nanoseconds; a cached one repeats those of its original.
    """
    return len({record.server or record.index for record in completed(records)})


def labelled(loads: Mapping[str, Iterable[RequestRecord]], load: str) -> list[RequestRecord]:
    """Return the records of loads that are no comparison, each with the name of its way and load."""
    return [replace(record, arm=f"{arm}, {load}") for arm, records in loads.items() for record in records]


def nth(index: int, metric: Callable[[RequestRecord], float | None]) -> Statistic:
    """Return the statistic "a metric of the request at this place of the visit"."""

    def value(records: Sequence[RequestRecord]) -> float | None:
        return mean_of(metric)([record for record in records if record.index == index])

    return value


def percent_text(comparison: Comparison) -> str:
    """Return "0.9 % (95 % interval 0.8–1.0 %, 8 pairs)" of a ratio; its reason without one."""
    if comparison.estimate is None or comparison.low is None or comparison.high is None:
        return comparison.reason or "n/a"
    interval = f"95 % interval {100 * comparison.low:.2g}–{100 * comparison.high:.2g} %"
    return f"{100 * comparison.estimate:.2g} % ({interval}, {comparison.pairs} pairs)"


def repeat_sentence(comparison: Comparison, *, form: str) -> str:
    """Return what a repetition costs with a cache, of what it costs without."""
    if comparison.estimate is None or comparison.low is None:
        return f"A repeated {form} request, against its time without a cache: {percent_text(comparison)}."
    return f"A repeated {form} request takes {percent_text(comparison)} of its time without a cache."


def repeats_title(comparison: Comparison) -> str:
    """Return the title of the figure of repeated requests."""
    if comparison.estimate is None or comparison.high is None or comparison.high >= 1:
        return "The repeated request, with and without a cache"
    return f"From memory, a repeated stream ends {1 / comparison.estimate:.0f}× sooner"


def asked_twice_table(trials: Trials) -> Table:
    """Return the mean of each of the four requests by arm, in milliseconds."""
    places = (FIRST_STREAM, REPEATED_STREAM, FIRST_WHOLE, REPEATED_WHOLE)
    rows: list[list[object]] = []
    for arm in trials.arms:
        means = [mean_of(e2e_final_line_s)(_at(trials.of(arm), place)) for place in places]
        in_ms = [None if mean is None else mean * 1e3 for mean in means]
        rows.append([arm, *in_ms, len(_at(completed(trials.of(arm)), REPEATED_STREAM)), ""])
    rows += [[arm, *[None] * 5, not_run_text(reason)] for arm, reason in trials.not_run.items()]
    names = ("First stream", "Repeated stream", "First whole", "Repeated whole")
    return Table.of(
        "asked_twice",
        "One question, asked twice",
        [
            Column(name="Cache"),
            *(Column(name=name, unit="ms", format=".1f") for name in names),
            Column(name="n"),
            Column(name="Note"),
        ],
        rows,
        caption="Means over n visits, from sending to the final line. Whole: stream false.",
    )


def _at(records: Iterable[RequestRecord], index: int) -> list[RequestRecord]:
    return [record for record in records if record.index == index]


def repeats_frame(trials: Trials) -> pd.DataFrame:
    """Return columns ``arm`` and ``value`` [ms] of the repeated streams, one row per visit."""
    repeated = completed(record for arm in trials.arms for record in _at(trials.of(arm), REPEATED_STREAM))
    rows = [(record.arm, e2e_final_line_s(record)) for record in repeated]
    frame = pd.DataFrame(rows, columns=["arm", "value"]).astype({"value": float})
    return frame.assign(value=frame["value"] * 1e3)


def shares_table(name: str, title: str, contrasts: Sequence[Comparison]) -> Table:
    """Return one row per contrast: both values in ms, and the ratio in percent with its interval."""
    rows = [
        (
            item.metric.name,
            item.arm,
            *(None if value is None else value * 1e3 for value in (item.arm_value, item.baseline_value)),
            item.effect,
            item.pairs,
            item.outcome,
        )
        for item in contrasts
    ]
    baseline = contrasts[0].baseline if contrasts else "baseline"
    return Table.of(
        name,
        title,
        [
            Column(name="Request"),
            Column(name="Cache"),
            Column(name="Mean", unit="ms", format=".2f"),
            Column(name=baseline.capitalize(), unit="ms", format=".1f"),
            Column(name="Share", format=".2%"),
            Column(name="Pairs"),
            Column(name="Verdict"),
        ],
        rows,
        caption="Hodges–Lehmann ratio over pairs with its exact 95 % interval, as a share of the time "
        "without a cache. The two contrasts of the claims were chosen beforehand; only they get a verdict.",
    )


def load_table(
    name: str,
    title: str,
    loads: Mapping[str, Sequence[RequestRecord]],
    not_run: Mapping[str, str],
    caption: str,
) -> Table:
    """Return requests, answers that the engine computed, the share it was spared, and the mean response."""
    rows: list[list[object]] = []
    for arm, records in loads.items():
        done, made = len(completed(records)), computed(records)
        spared = 1 - made / done if done else None
        mean = mean_of(response_s)(records)
        rows.append([arm, len(records), done, made, spared, None if mean is None else mean * 1e3, ""])
    rows += [[arm, *[None] * 5, not_run_text(reason)] for arm, reason in not_run.items()]
    columns = [
        Column(name="Cache"),
        Column(name="Requests"),
        Column(name="Answered"),
        Column(name="Computed"),
    ]
    columns += [Column(name="Spared", format=".0%"), Column(name="Mean response", unit="ms", format=".1f")]
    return Table.of(name, title, [*columns, Column(name="Note")], rows, caption=caption)


def outcomes_table(steps: Sequence[tuple[float, str]], outcomes: Sequence[str], *, caption: str) -> Table:
    """Return what a cache said of each question.

    Args:
        steps: Seconds on its clock, and the question's name.
        outcomes: Of these steps.
        caption: Its time and limits.
    """
    return Table.of(
        "expiry",
        "When an answer is gone",
        [Column(name="At", unit="s", format=".0f"), Column(name="Question"), Column(name="Outcome")],
        [(at_s, name, outcome) for (at_s, name), outcome in zip(steps, outcomes, strict=True)],
        caption=caption,
    )


def hit_points(shares: Mapping[int, float]) -> pd.DataFrame:
    """Return the share of hits by cache size, as ``plots.sweep_lines`` draws it."""
    rows = [(size, share, share, share) for size, share in shares.items()]
    return pd.DataFrame(rows, columns=["x", "value", "low", "high"], dtype=float)


def hits_title(shares: Mapping[int, float], questions: int) -> str:
    """Return what the smallest cache hits, and what one does that holds every question."""
    least, most = min(shares), max(shares)
    word = "answer" if least == 1 else "answers"
    return (
        f"{least} {word} kept: {shares[least]:.0%} hits; {most} of {questions} questions: {shares[most]:.0%}"
    )
