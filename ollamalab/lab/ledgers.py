"""Ledgers of several scenarios side by side: where their time went, and what a client could see of it.

Shown are means, not medians: means of parts add up to the mean of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import pandas as pd

from ollamalab.client import Answer
from ollamalab.lab.tables import with_not_run
from ollamalab.lab.trials import Trials
from ollamalab.metrics import tpot_s
from ollamalab.records import RequestRecord, Sample
from ollamalab.report import Column, Table

#: Scenario to its answers.
Answers = Mapping[str, Sequence[Answer]]

#: Part of a ledger to its heading, in order of time.
PARTS = {
    "prepare": "prepare",
    "dns": "look up",
    "connect": "connect",
    "tls": "TLS",
    "send": "send",
    "load": "load",
    "slot_wait": "slot wait",
    "prompt_eval": "prompt",
    "eval": "answer",
    "network": "network",
    "parse": "parse",
    "residual": "residual",
}

#: Stages of the figure, each with its parts of the ledger; all others are "other".
_DRAWN = {
    "look up": ("dns",),
    "TCP, TLS": ("connect", "tls"),
    "load": ("load",),
    "slot wait": ("slot_wait",),
    "prompt": ("prompt_eval",),
    "answer": ("eval",),
}
_CONNECTING = ("dns", "connect", "tls")
_MS = 1e3


def mean_parts(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Return the mean seconds of each part of ``PARTS``; None where no answer has it.

    One that only some have counts as 0 s in the others, so that the means still add up.
    """
    ledgers = [answer.stages.parts() for answer in answers]
    return {
        part: fmean(ledger.get(part, 0.0) for ledger in ledgers)
        if any(part in ledger for ledger in ledgers)
        else None
        for part in PARTS
    }


def mean_e2e_s(answers: Sequence[Answer]) -> float:
    """Return the mean time from the call to the parsed reply."""
    return fmean(answer.stages.e2e_s for answer in answers)


def gap_s(answers: Answers) -> float:
    """Return by how many seconds any ledger's parts miss its end-to-end time at most."""
    return max(
        (
            abs(sum(answer.stages.parts().values()) - answer.stages.e2e_s)
            for group in answers.values()
            for answer in group
        ),
        default=0.0,
    )


def ledger_table(answers: Answers, *, not_run: Mapping[str, str]) -> Table:
    """Return one row per scenario: the mean of each part, the residual, and their sum."""
    rows: list[list[object]] = []
    for scenario, group in _known(answers).items():
        parts = [None if part is None else part * _MS for part in mean_parts(group).values()]
        rows.append([scenario, len(group), *parts, mean_e2e_s(group) * _MS])
    columns = [Column(name="Scenario"), Column(name="n")]  # no units: fifteen columns are wide enough
    columns += [Column(name=heading, format=".1f") for heading in (*PARTS.values(), "sum")]
    return with_not_run(
        {scenario: reason for scenario, reason in not_run.items() if scenario in answers},
        "ledger",
        "The stages of a request, in ms",
        columns,
        rows,
        caption="Means of n requests, each over a new connection. Load, prompt and answer: as the server "
        "reports them; slot wait: what they leave of its total, tokenising included; network: from the "
        "request's last byte to the final line, less the server's total (below 0 where the server began "
        "before the client had noticed that all was sent); residual: what none of these explains. n/a: did "
        "not occur.",
    )


def seen_table(answers: Answers) -> Table:
    """Return what a client without the server's durations sees, and what most of its wait really was."""
    rows = []
    for scenario, group in _known(answers).items():
        connecting_s = fmean(map(connecting_of, group))
        begins_s = fmean(map(begins_of, group))
        part, share = culprit(group)
        gaps = [gap for answer in group if (gap := tpot_s(answer.record)) is not None]
        rows.append(
            (
                scenario,
                connecting_s * _MS,
                begins_s * _MS,
                connecting_s / begins_s,
                f"{part}, {share:.0%}",
                fmean(gaps) * _MS if gaps else None,
            )
        )
    return Table.of(
        "seen",
        "What a client sees of it",
        [
            Column(name="Scenario"),
            Column(name="Connecting", unit="ms", format=".1f"),
            Column(name="Reply begins after", unit="ms", format=".0f"),
            Column(name="Connecting of that", format=".1%"),
            Column(name="Most of it is"),
            Column(name="Per token", unit="ms", format=".1f"),
        ],
        rows,
        caption="Means. Connecting: look-up, TCP and TLS. The reply begins with its status line; nothing "
        "comes before it. Most of it: the largest stage before that, with its share of the wait. Per token: "
        "between tokens after the first; n/a where all came at once.",
    )


def connecting_of(answer: Answer) -> float:
    """Return the seconds that an answer spent on look-up, TCP and TLS."""
    parts = answer.stages.parts()
    return sum(parts.get(part, 0.0) for part in _CONNECTING)


def longest_connecting_s(answers: Answers, *, leave_out: str) -> float:
    """Return the longest seconds that any request spent connecting, one scenario left out; 0 if none."""
    return max(
        (connecting_of(answer) for name, group in answers.items() for answer in group if name != leave_out),
        default=0.0,
    )


def begins_of(answer: Answer) -> float:
    """Return the seconds from the call to the reply's status line."""
    record = answer.record
    assert record.headers_s is not None  # it has a final line
    return record.headers_s - record.intended_s


def culprit(answers: Sequence[Answer]) -> tuple[str, float]:
    """Return the heading of the largest stage before the reply began, and its share of that wait.

    Generating counts as far as it came before the status line: not at all for a stream, and all of it for an
    answer that is sent as a whole.
    """
    parts = {part: seconds for part, seconds in mean_parts(answers).items() if seconds is not None}
    after_s = fmean(max(0.0, _end_s(answer.record) - begins_of(answer)) for answer in answers)
    if "eval" in parts:
        parts["eval"] = max(0.0, parts["eval"] - after_s)
    largest = max(parts, key=parts.__getitem__)
    return PARTS[largest], parts[largest] / fmean(map(begins_of, answers))


def _end_s(record: RequestRecord) -> float:
    assert record.end_s is not None
    return record.end_s - record.intended_s


def stage_frame(answers: Answers) -> pd.DataFrame:
    """Return the mean seconds of the stages that ``plots.stage_bars`` draws: index scenario."""
    rows = {}
    for scenario, group in _known(answers).items():
        parts = mean_parts(group)
        row = {stage: sum(parts[part] or 0.0 for part in members) for stage, members in _DRAWN.items()}
        rows[scenario] = row | {"other": mean_e2e_s(group) - sum(row.values())}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*_DRAWN, "other"]).astype(float)


def connect_title(answers: Answers) -> str:
    """Return the title of the figure: the largest share that TCP's handshake has in any scenario."""
    shares = {
        scenario: (mean_parts(group)["connect"] or 0.0) / mean_e2e_s(group)
        for scenario, group in _known(answers).items()
    }
    if not shares:
        return "The stages of a request"
    most = max(shares, key=shares.__getitem__)
    return f"The TCP handshake is at most {shares[most]:.1%} of a request ({most})"


def waits_sentence(answers: Answers) -> str:
    """Return, by scenario, what the wait for the reply's first byte mostly was."""
    texts = []
    for scenario, group in _known(answers).items():
        part, share = culprit(group)
        begins_s = fmean(map(begins_of, group))
        texts.append(f"{scenario} {begins_s * _MS:.0f} ms ({part} {share:.0%})")
    return f"Until the reply began, and what most of it was: {', '.join(texts) or 'n/a'}."


def residual_sentence(answers: Answers) -> str:
    """Return how much of the requests' time the ledger leaves unexplained."""
    shares = [
        (mean_parts(group)["residual"] or 0.0) / mean_e2e_s(group) for group in _known(answers).values()
    ]
    return f"The ledger leaves at most {max(shares):.1%} of a scenario's time unexplained." if shares else ""


def host_table(trials: Trials, samples: Iterable[Sample], *, interval_s: float) -> Table:
    """Return what the host did during the requests of each scenario.

    Args:
        trials: One arm per scenario.
        samples: Of the host and the server's processes, meanwhile.
        interval_s: Between samples: one that was read so long after a request's end still speaks of it.
    """
    kept = list(samples)
    host = [sample for sample in kept if sample.source == "host"]
    server = [sample for sample in kept if sample.source.startswith("server ")]
    rows = []
    for scenario in trials.arms:
        within = [
            (record.intended_s, record.end_s + interval_s)
            for record in trials.of(scenario)
            if record.end_s is not None
        ]
        busy = _during(host, within, "cpu_ratio")
        memory = _during(server, within, "rss_bytes")
        read = [_grown(host, span, "read_bytes") for span in within]
        known = [grown for grown in read if grown is not None]
        rows.append(
            (
                scenario,
                _mean(busy),
                _mean(_during(server, within, "cpu_ratio")),
                max(memory) / 1e6 if memory else None,
                fmean(known) / 1e6 if known else None,
                len(busy),
            )
        )
    return Table.of(
        "host",
        "What the host did meanwhile",
        [
            Column(name="Scenario"),
            Column(name="Host CPU", format=".0%"),
            Column(name="Server CPU", unit="cores", format=".2f"),
            Column(name="Server memory", unit="MB", format=".0f"),
            Column(name="Read from storage", unit="MB/request", format=".1f"),
            Column(name="Samples"),
        ],
        rows,
        caption=f"Samples every {interval_s * _MS:g} ms that overlap a request; CPU is a mean over them, "
        "memory the most. A request shorter than that shares its samples with what came before and after.",
    )


def _during(samples: Iterable[Sample], spans: Sequence[tuple[float, float]], name: str) -> list[float]:
    """Return the known values of the samples that lie within any of the spans."""
    return [
        value
        for sample in samples
        if any(start_s <= sample.at_s <= end_s for start_s, end_s in spans)
        and (value := sample.values.get(name)) is not None
    ]


def _grown(samples: Sequence[Sample], span: tuple[float, float], name: str) -> float | None:
    """Return by how much a counter grew from the last sample before a span to the last one in it."""
    start_s, end_s = span
    before = [value for sample in samples if sample.at_s < start_s and (value := sample.values.get(name))]
    until = [value for sample in samples if sample.at_s <= end_s and (value := sample.values.get(name))]
    return until[-1] - before[-1] if before and until else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _known(answers: Answers) -> dict[str, Sequence[Answer]]:
    return {scenario: group for scenario, group in answers.items() if group}
