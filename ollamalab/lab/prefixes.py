"""Prompts that begin alike: what an engine still evaluates of them, and what that does to the first token.

An engine keeps the keys and values of what it read last in each of its *slots*. Of the next prompt there it
evaluates only what follows the beginning that both share. ``prompt_work`` tells how many tokens that were.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ollamalab.compare import Comparison, Visit
from ollamalab.lab.caching import nth
from ollamalab.lab.frames import sweep_points
from ollamalab.lab.prompt_meter import Message, PromptMeter, Way
from ollamalab.lab.sentences import result_text
from ollamalab.lab.trials import Trials, Visitor, mean_of
from ollamalab.metrics import completed, prefill_tokens_per_s, ttft_s
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table
from ollamalab.workload import WORDS

# What is said


class Texts:
    """Texts of words drawn from a seed, and numbers that no other request has."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # Fresh for each run: a server may remember the prompts of the run before.
        self._numbers = random.Random()

    def draws(self, name: object) -> random.Random:
        """Return the draws of one visit or text: equal names give equal words."""
        return random.Random(f"{self._seed}:{name}")

    def stamp(self) -> str:
        """Return a line that differs from request to request, as a clock or a user's name does."""
        return f"It is minute {self._numbers.randrange(10**9):09d}."

    def rules(self, name: object, tokens: int) -> str:
        """Return the text of a system prompt of about so many tokens; equal names give equal words."""
        rng = self.draws(name)
        return "Words to know: " + " ".join(rng.choice(WORDS) for _ in range(tokens))


def system_message(*lines: str) -> Message:
    """Return a system message of these lines."""
    return {"role": "system", "content": "\n".join(lines)}


def question(rng: random.Random) -> Message:
    """Return a question of about ten tokens."""
    return {"role": "user", "content": f"Tell a long story of {rng.choice(WORDS)} and {rng.choice(WORDS)}."}


# Visits


async def warm(meter: PromptMeter, texts: Texts, ways: Iterable[Way]) -> None:
    """Ask each server something short: what a load leaves undone is done with the first prompt."""
    for way in ways:
        await meter.ask(way, [system_message(texts.stamp()), question(texts.draws("warm"))])


async def ask_in_turn(
    meter: PromptMeter,
    way: Way,
    texts: Texts,
    systems: Mapping[str, Message],
    order: Iterable[str],
    *,
    label: str = "",
) -> list[RequestRecord]:
    """Ask a new question under one system prompt after the other; each record's arm says which it was.

    "2. B", or with a label "1 slot, 2. B".

    Args:
        meter: Counts.
        way: To the server.
        texts: Draws the questions.
        systems: The system prompts by name.
        order: Names, as they are asked.
        label: Of all of them.
    """
    rng = texts.draws(f"in turn {label}")
    asked = []
    for place, name in enumerate(order):
        messages = [systems[name], question(rng)]
        arm = f"{label}, {place + 1}. {name}" if label else f"{place + 1}. {name}"
        record, _ = await meter.ask(way, messages, index=place, arm=arm)
        asked.append(record)
    return asked


def stamped(meter: PromptMeter, way: Way, texts: Texts, rules: str, *, is_first: bool) -> Visitor:
    """Return the visitor "one question under a system prompt with a line that is new each time".

    Args:
        meter: Counts.
        way: To the server.
        texts: Makes line and question.
        rules: The rest of the system prompt, always the same.
        is_first: Whether the new line opens the system prompt; else it closes it.
    """

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        stamp, asked = texts.stamp(), question(texts.draws(f"block {visit.block}"))
        lines = (stamp, rules) if is_first else (rules, stamp)
        record, _ = await meter.ask(way, [system_message(*lines), asked])
        return [record]

    return visit


def by_turns(meter: PromptMeter, way: Way, texts: Texts, systems: Sequence[Message]) -> Visitor:
    """Return the visitor "one question under each of these system prompts, in turn"."""

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        rng = texts.draws(
            f"visit {visit.index}"
        )  # a block's would have been asked before, in its first visit
        asked = []
        for place, each in enumerate(systems):
            record, _ = await meter.ask(way, [each, question(rng)], index=place)
            asked.append(record)
        return asked

    return visit


@dataclass(frozen=True, kw_only=True)
class ChatShape:
    """Conversations that go on side by side, one request at a time.

    Attributes:
        chats: How many.
        turns: Questions in each.
        system_tokens: Of the system prompt that each has for itself.
    """

    chats: int
    turns: int
    system_tokens: int


def conversations(
    meter: PromptMeter, way: Way, texts: Texts, shape: ChatShape, *, is_restamped: bool = False
) -> Visitor:
    """Return the visitor "new conversations, turn by turn"; a record's index is its turn, from 0.

    In each turn the conversations come in another order. Their system prompts begin with lines that
    nobody has sent before.

    Args:
        meter: Counts.
        way: To the server or servers.
        texts: Makes the prompts.
        shape: How many and how long.
        is_restamped: Whether that line is new in every turn, as a clock is.
    """

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        rng = texts.draws(f"block {visit.block}")
        rules = [texts.rules(f"{visit.block} {number}", shape.system_tokens) for number in range(shape.chats)]
        talks = [[system_message(texts.stamp(), text)] for text in rules]
        order = list(range(shape.chats))
        asked = []
        for turn in range(shape.turns):
            rng.shuffle(order)
            for number in order:
                talk = talks[number]
                if is_restamped:
                    talk[0] = system_message(texts.stamp(), rules[number])
                talk.append(question(rng))
                record, answer = await meter.ask(way, talk, index=turn)
                talk.append({"role": "assistant", "content": answer})
                asked.append(record)
        return asked

    return visit


# What is shown


def later_turns(records: Sequence[RequestRecord]) -> float | None:
    """Return the statistic "mean TTFT from the second turn on", in seconds."""
    return mean_of(ttft_s)([record for record in records if record.index > 0])


def placement_title(comparison: Comparison) -> str:
    """Return what the place of a changing line is worth."""
    if comparison.estimate is None or comparison.high is None or comparison.high >= 1:
        return f"Time to first token, with {comparison.baseline} and with {comparison.arm}"
    return (
        f"With {comparison.arm}, the first token takes {comparison.estimate:.0%} of its time "
        f"with {comparison.baseline}"
    )


def turn_points(trials: Trials, turns: int) -> pd.DataFrame:
    """Return the mean TTFT by turn (from 1), one line per arm; see ``plots.sweep_lines``."""
    lines = [
        sweep_points(trials, {arm: turn + 1}, nth(turn, ttft_s)).assign(series=arm)
        for arm in trials.arms
        for turn in range(turns)
    ]
    return pd.concat(lines, ignore_index=True)


def turns_title(points: pd.DataFrame, *, arm: str, baseline: str) -> str:
    """Return how the last turn's first token compares with the first turn's, for both arms."""
    growths = []
    for name in (arm, baseline):
        line = points[points["series"] == name].sort_values("x") if "series" in points else points.iloc[:0]
        if len(line) < 2:
            return "Time to first token by turn"
        growths.append(line["value"].iloc[-1] / line["value"].iloc[0])
    last = points["x"].max()
    return (
        f"With {arm}, turn {last:g} takes {growths[0]:.2f}× the time of turn 1; "
        f"with {baseline}, {growths[1]:.1f}×"
    )


def prompts_table(
    name: str,
    title: str,
    groups: Mapping[str, Sequence[RequestRecord]],
    meter: PromptMeter,
    *,
    caption: str = "",
) -> Table:
    """Return a row per group of requests: tokens sent and evaluated, TTFT, and both prefill rates.

    Args:
        name: Of the table.
        title: What the rows show.
        groups: Name to its requests; a row shows means of those that were answered.
        meter: What was evaluated for them.
        caption: What else is to be known.
    """
    rows: list[list[object]] = []
    is_untold = False
    for label, records in groups.items():
        done = completed(records)
        slots = sorted({slot for record in done if (slot := meter.work(record).slot) is not None})
        sent, evaluated = mean_of(_sent)(done), mean_of(meter.evaluated)(done)
        is_untold |= bool(done) and evaluated is None
        ttft = mean_of(ttft_s)(done)
        rates = mean_of(prefill_tokens_per_s)(done), mean_of(meter.prefill_tokens_per_s)(done)
        ms = None if ttft is None else ttft * 1e3
        rows.append([label, ", ".join(map(str, slots)) or None, sent, evaluated, ms, *rates, len(done)])
    return Table.of(
        name,
        title,
        [
            Column(name="Request"),
            Column(name="Slot"),
            Column(name="Sent", unit="tokens", format=".0f"),
            Column(name="Evaluated", unit="tokens", format=".0f"),
            Column(name="TTFT", unit="ms", format=".0f"),
            Column(name="Sent / time", unit="tokens/s", format=",.0f"),
            Column(name="Evaluated / time", unit="tokens/s", format=",.0f"),
            Column(name="n"),
        ],
        rows,
        caption="Means over n requests. Sent: Ollama's prompt_eval_count. Evaluated: by the engine's own "
        f"counter{'; n/a where it cannot be read' if is_untold else ''}. "
        f"Time: prompt_eval_duration, in which the first answer token's decode is.{caption}",
    )


def _sent(record: RequestRecord) -> float | None:
    return record.prompt_tokens


def token_shares(groups: Mapping[str, Sequence[RequestRecord]], meter: PromptMeter) -> pd.DataFrame:
    """Return mean tokens per request by group, as ``plots.token_bars`` draws them; unknown groups left out.

    Columns ``label``, ``sent``, ``evaluated``, ``n``.
    """
    rows = []
    for label, records in groups.items():
        done = completed(records)
        sent, evaluated = mean_of(_sent)(done), mean_of(meter.evaluated)(done)
        if sent is not None and evaluated is not None:
            rows.append((label, sent, evaluated, len(done)))
    return pd.DataFrame(rows, columns=["label", "sent", "evaluated", "n"])


def tokens_title(shares: pd.DataFrame, label: str, other: str) -> str:
    """Return how much of a prompt is evaluated in two of the groups."""
    ratios = {row.label: row.evaluated / row.sent for row in shares.itertuples() if row.sent}
    if label not in ratios or other not in ratios:
        return "Prompt tokens sent and evaluated"
    return f"With {label}, {ratios[label]:.0%} of a prompt is evaluated; with {other}, {ratios[other]:.0%}"


def prefix_sentence(when: str, comparison: Comparison) -> str:
    """Return "Time to first token {when}, with arm against baseline: ..."."""
    arms = f"{comparison.arm} against {comparison.baseline}"
    return f"Time to first token {when}, {arms}: {result_text(comparison)}."


def return_sentence(
    server: str, asked: Sequence[RequestRecord], anew: Sequence[RequestRecord], meter: PromptMeter
) -> str:
    """Return what is evaluated of a prompt that comes back after others took its slot, and after an unload.

    Args:
        server: Its name.
        asked: Prompts in turn; the last is one that came before.
        anew: The same after the model was loaded again; none where that was not done.
        meter: What was evaluated for them.
    """
    parts = [
        f"{meter.evaluated(records[-1])} of {records[-1].prompt_tokens} {when}"
        for records, when in ((asked, "after others took its place"), (anew, "after the model was unloaded"))
        if records and meter.evaluated(records[-1]) is not None
    ]
    known = ", ".join(parts) or "n/a; the engine's counter cannot be read"
    return f"Tokens evaluated when a prompt comes back, {server}: {known}."
