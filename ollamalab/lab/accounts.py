"""Both sides' accounts of what became of requests, and why they differ. Pure.

- ``Episode``: one scenario on one way, as the server and as the clients saw it
- ``cause``: why one request looks different from both sides
- ``NoiseFloor``: how far the same load, offered twice, differs from itself
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import pandas as pd

from ollamalab.compare import Comparison, hodges_lehmann, pairs, visit_values
from ollamalab.lab.sentences import plural, result_text, verdict_word
from ollamalab.lab.trials import Statistic, Trials, not_run_text
from ollamalab.metrics import outcome_counts
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import Column, Table
from ollamalab.report.tables import number_text

#: Finished as far as the protocol goes, with text or without.
WHOLE = (Outcome.OK, Outcome.EMPTY)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One scenario on one way.

    Attributes:
        scenario: What went wrong.
        way: Name of the way.
        records: What the clients saw, in the order of the requests.
        served: What the server did with each: none if it never came to it, several if it was sent again.
        gateway: How requests ended by the gateway's own count; empty without one.
        busy_slots: Slots still at work after everybody had left; None where the server does not tell.
        recovered_s: From the end of the load to the next good answer; None if there was none in time.
    """

    scenario: str
    way: str
    records: tuple[RequestRecord, ...]
    served: tuple[tuple[RequestRecord, ...], ...]
    gateway: Mapping[str, int]
    busy_slots: int | None
    recovered_s: float | None

    @property
    def whole_at_client(self) -> int:
        """Requests that their clients saw finished."""
        return sum(record.outcome in WHOLE for record in self.records)

    @property
    def attempts(self) -> int:
        """How often the server was asked."""
        return sum(map(len, self.served))

    @property
    def whole_at_server(self) -> int:
        """Requests that the server finished."""
        return sum(any(one.outcome in WHOLE for one in served) for served in self.served)

    @property
    def is_counted_by_gateway(self) -> bool:
        """Whether the gateway counted every request; whoever gave up may have left before it could."""
        given_up = sum(record.outcome in (Outcome.TIMEOUT, Outcome.CANCELLED) for record in self.records)
        return len(self.records) - given_up <= sum(self.gateway.values()) <= len(self.records)

    def causes(self) -> Counter[str]:
        """Return why the two sides' accounts differ, with how many requests; the others are left out."""
        return Counter(
            reason
            for record, served in zip(self.records, self.served, strict=True)
            if (reason := cause(record, served))
        )


_LOST = "finished, and lost on the way to the client"
_GIVEN_UP = "given up by the client, and the server was told"
_TOLD = "broken off on the way, and the client was told"
_NOT_TOLD = "broken off on the way, and the client was not told"

#: (server's side, client's side) to what it means; pairs of equal outcomes agree.
_CAUSES: Mapping[tuple[Outcome, Outcome], str] = {
    (Outcome.CANCELLED, Outcome.TIMEOUT): _GIVEN_UP,
    (Outcome.CANCELLED, Outcome.TRUNCATED): _NOT_TOLD,
    (Outcome.CANCELLED, Outcome.ERROR_LINE): _TOLD,
    (Outcome.CANCELLED, Outcome.HTTP_ERROR): _TOLD,
}
UNEXPLAINED = "unexplained"


def cause(record: RequestRecord, served: Sequence[RequestRecord]) -> str:
    """Return why a request looks different from both sides; "" if it does not.

    Args:
        record: As its client saw it.
        served: What the server did with it, the latest attempt last.
    """
    seen = record.outcome
    if not served:
        return {
            Outcome.HTTP_ERROR: "refused before it came to the server",
            Outcome.TIMEOUT: "given up before it came to the server",
            Outcome.CANCELLED: "given up before it came to the server",
        }.get(seen, UNEXPLAINED)
    done = served[-1].outcome
    if done is seen:
        return ""
    if done in WHOLE:
        return "finished as the client gave up" if seen in (Outcome.TIMEOUT, Outcome.CANCELLED) else _LOST
    if done in (Outcome.ERROR_LINE, Outcome.HTTP_ERROR, Outcome.TRUNCATED) and seen not in WHOLE:
        return "failed at the server, told to the client in other words"
    return _CAUSES.get((done, seen), UNEXPLAINED)


def endings_frame(groups: Mapping[str, Iterable[RequestRecord]]) -> pd.DataFrame:
    """Return how many requests ended how: a row per group, a column per outcome that occurred.

    Args:
        groups: Name of the row to its requests.
    """
    counts = {name: outcome_counts(records) for name, records in groups.items()}
    frame = pd.DataFrame(
        {outcome.value: [found[outcome] for found in counts.values()] for outcome in Outcome},
        index=list(counts),
    )
    return frame.loc[:, frame.any()]


def by_label(episodes: Iterable[Episode]) -> dict[str, list[RequestRecord]]:
    """Return the clients' records of each scenario and way, under the label that they bear as arm."""
    groups: dict[str, list[RequestRecord]] = {}
    for record in chain.from_iterable(episode.records for episode in episodes):
        groups.setdefault(record.arm, []).append(record)
    return groups


def endings_table(frame: pd.DataFrame, *, not_run: Mapping[str, str]) -> Table:
    """Return how requests ended, from ``endings_frame``; scenarios that were not run have their reason."""
    rows: list[tuple[object, ...]] = [
        (label, *map(int, counts), int(counts.sum()), "") for label, counts in frame.iterrows()
    ]
    rows += [
        (label, *[None] * (len(frame.columns) + 1), not_run_text(reason)) for label, reason in not_run.items()
    ]
    columns = [Column(name=name.replace("_", " ")) for name in ("scenario, way", *frame.columns, "n")]
    if not_run:
        columns.append(Column(name="Note"))
    else:
        rows = [row[:-1] for row in rows]
    return Table.of(
        "endings",
        "How requests ended, as their clients saw it",
        columns,
        rows,
        caption="ok: finished with text; empty: finished without any; truncated: broke off unannounced; "
        "error line: broke off with an error in the stream; http error: a status of 400 or more; timeout: "
        "the client's patience; cancelled: the client left on purpose.",
    )


def accounts_table(name: str, title: str, episodes: Iterable[Episode]) -> Table:
    """Return a row per scenario and way: finished requests as each side counts them, and what explains it."""
    rows = []
    for episode in episodes:
        causes = episode.causes()
        rows.append(
            (
                episode.scenario,
                episode.way,
                len(episode.records),
                episode.attempts,
                episode.whole_at_client,
                episode.gateway.get("completed", 0) if episode.gateway else None,
                episode.whole_at_server,
                episode.whole_at_server - episode.whole_at_client,
                "; ".join(f"{count} {reason}" for reason, count in causes.items()),
                episode.busy_slots,
                episode.recovered_s,
            )
        )
    return Table.of(
        name,
        title,
        [
            Column(name="Scenario"),
            Column(name="Way"),
            Column(name="Sent"),
            Column(name="Came to the server"),
            Column(name="Client"),
            Column(name="Gateway"),
            Column(name="Server"),
            Column(name="Server − client", format="+d"),
            Column(name="What the sides see differently"),
            Column(name="Slots busy after"),
            Column(name="Next answer", unit="s", format=".2f"),
        ],
        rows,
        caption="Server: what left it, seen on the wire before it; gateway: its own counter, n/a without it. "
        "A request that both sides saw fail alike is no difference. Next answer: after the last of these "
        "requests had ended, until a further one was answered well.",
    )


def tokenless_table(episodes: Iterable[Episode]) -> Table:
    """Return where the server finished an answer and its client had no text: what each of them notes."""
    groups: dict[tuple[str, str, str, str], list[RequestRecord]] = {}
    for episode in episodes:
        for record, served in zip(episode.records, episode.served, strict=True):
            if served and served[-1].outcome in WHOLE and not record.token_times_s:
                sides = (served[-1].outcome.value, record.outcome.value)
                groups.setdefault((episode.scenario, episode.way, *sides), []).append(served[-1])
    rows = []
    for (scenario, way, done, seen), served_records in groups.items():
        tokens = [record.output_tokens for record in served_records if record.output_tokens is not None]
        rows.append((scenario, way, done, fmean(tokens) if tokens else None, seen, len(served_records)))
    return Table.of(
        "tokenless",
        "Finished at the server, no text at the client",
        [
            Column(name="Scenario"),
            Column(name="Way"),
            Column(name="Server's side"),
            Column(name="Tokens there", format=".1f"),
            Column(name="Client's side"),
            Column(name="n"),
        ],
        rows,
        caption="Tokens there: eval_count of the final line that left the server, on average.",
    )


def trouble_title(episodes: Sequence[Episode]) -> str:
    """Return how many requests were answered on each way when something went wrong."""
    answered: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for episode in episodes:
        sent[episode.way] += len(episode.records)
        answered[episode.way] += sum(record.outcome is Outcome.OK for record in episode.records)
    if not sent:
        return "How requests ended when something went wrong"
    parts = (f"{way} {answered[way]} of {count}" for way, count in sent.items())
    return f"Answered with text when things go wrong: {', '.join(parts)}"


def tokenless_sentence(episodes: Iterable[Episode]) -> str:
    """Return in which pairs of outcomes the server finished an answer and its client had no text."""
    kinds = Counter(
        (served[-1].outcome.value, record.outcome.value)
        for episode in episodes
        for record, served in zip(episode.records, episode.served, strict=True)
        if served and served[-1].outcome in WHOLE and not record.token_times_s
    )
    if not kinds:
        return "No answer that the server finished was without text at its client."
    found = ", ".join(
        f"{count} ({done} at the server, {seen.replace('_', ' ')} at the client)"
        for (done, seen), count in kinds.items()
    )
    return f"Finished at the server and without text at the client: {found}."


def overload_table(comparisons: Sequence[Comparison], *, load: float) -> Table:
    """Return a row per way: the share of requests answered in time, against the baseline's."""
    rows = [
        (
            item.arm,
            item.arm_value,
            item.baseline_value,
            None
            if item.effect is None
            else tuple(None if value is None else 100 * value for value in item.effect),
            item.pairs,
            item.outcome,
        )
        for item in comparisons
    ]
    baseline = comparisons[0].baseline if comparisons else "baseline"
    return Table.of(
        "overload",
        f"Answered in time at {load:g} times the capacity",
        [
            Column(name="Way"),
            Column(name="In time", format=".0%"),
            Column(name=baseline, format=".0%"),
            Column(name="Difference", unit="points", format="+.0f"),
            Column(name="Pairs"),
            Column(name="Verdict"),
        ],
        rows,
        caption="Shares of all requests sent, means of the visits; difference: Hodges–Lehmann, with its "
        "exact 95 % interval over pairs.",
    )


def overload_title(comparison: Comparison) -> str:
    """Return the title of the figure of endings under overload."""
    known = (comparison.arm_value, comparison.baseline_value)
    if comparison.low is None or comparison.low <= 0 or None in known:
        return "How requests end under overload"
    arm, baseline = (value for value in known if value is not None)
    return f"With {comparison.arm}, {arm:.0%} are answered in time, {comparison.baseline} {baseline:.0%}"


def overload_sentence(comparison: Comparison, *, load: float) -> str:
    """Return what a bounded queue does to the share of requests answered in time."""
    known = (comparison.arm_value, comparison.baseline_value, comparison.low, comparison.high)
    if any(value is None for value in known) or comparison.estimate is None:
        return f"Overload, {comparison.arm} against {comparison.baseline}: {result_text(comparison)}."
    arm, baseline, *_ = (100 * value for value in known if value is not None)
    points, low, high = (
        number_text(100 * value, "+.0f")
        for value in (comparison.estimate, comparison.low, comparison.high)
        if value is not None
    )
    return (
        f"At {load:g} times the capacity {arm:.0f} % of the requests were answered in time with "
        f"{comparison.arm}, {baseline:.0f} % {comparison.baseline}: {points} points "
        f"(95 % interval {low}…{high}, {plural(comparison.pairs, 'pair')}), {verdict_word(comparison)}."
    )


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """How far the same load, offered twice in a row, differs from itself.

    Attributes:
        effect: Relative change that is asked about.
        pairs: Pairs of visits.
        beyond: Pairs that differ by more than the effect, in either direction.
        low: Lower end of the 95 % interval of the ratio; None where so few pairs have none.
        high: Upper end.
        needed: Pairs that would show the effect in four of five cases: (2.8 sd / ln(1 + effect))².
    """

    effect: float
    pairs: int
    beyond: int
    low: float | None
    high: float | None
    needed: int | None


def noise_floor(trials: Trials, statistic: Statistic, *, effect: float) -> NoiseFloor:
    """Return the noise floor of a comparison of something with itself.

    Args:
        trials: Of two arms that are the same.
        statistic: Its value in one visit.
        effect: Relative change that is asked about.
    """
    baseline, arm = trials.arms
    values = pairs(visit_values(trials.records, statistic), arm=arm, baseline=baseline)
    logs = [math.log(own / other) for own, other in values if own and other]
    found = hodges_lehmann(logs)
    needed = None
    if found.detectable:
        needed = math.ceil(found.n * (found.detectable / math.log1p(effect)) ** 2)
    return NoiseFloor(
        effect=effect,
        pairs=len(logs),
        beyond=sum(abs(log) > math.log1p(effect) for log in logs),
        low=None if found.low is None else math.exp(found.low),
        high=None if found.high is None else math.exp(found.high),
        needed=needed,
    )


def noise_text(floor: NoiseFloor) -> str:
    """Return in one clause what the same load twice shows of an effect's size."""
    if floor.needed is None:
        return "the noise of this host is not known: too few pairs were answered"
    interval = (
        ""
        if floor.low is None or floor.high is None
        else f" (95 % interval {floor.low:.3f}–{floor.high:.3f})"
    )
    return (
        f"the same load twice differs by more than {100 * floor.effect:.1f} % in {floor.beyond} of "
        f"{plural(floor.pairs, 'pair')}{interval}, so that on this host it takes about {floor.needed} pairs "
        "to see such an effect"
    )
