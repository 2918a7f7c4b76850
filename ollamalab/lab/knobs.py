"""Settings one at a time: what each does to a request and to memory.

A *knob* is one setting with one value, written as a person would: ``OLLAMA_KV_CACHE_TYPE=q8_0`` is a
variable of the server, ``num_batch=32`` an option of requests. Each gets a server of its own that differs
from the *defaults* in nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from ollamalab.compare import Comparison, Metric
from ollamalab.errors import SettingsError
from ollamalab.lab.experiment import Lab
from ollamalab.lab.sentences import plural, result_text
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Trials, mean_of
from ollamalab.metrics import (
    decode_tokens_per_s,
    e2e_final_line_s,
    prefill_tokens_per_s,
    tpot_s,
    ttft_s,
)
from ollamalab.protocol.options import LOAD_OPTIONS, parse_options
from ollamalab.records import RequestRecord
from ollamalab.report import Advice, Column, Table
from ollamalab.settings import ServerSettings, server_settings_from_environment
from ollamalab.settings.variables import GONE

#: The arm that every knob is set against.
DEFAULTS = "defaults"

_RESPONSE = Metric(name="response", unit="s", better="lower")
_STATISTICS = (
    (_RESPONSE, mean_of(e2e_final_line_s)),
    (Metric(name="first token", unit="s", better="lower"), mean_of(ttft_s)),
    (Metric(name="each further token", unit="s", better="lower"), mean_of(tpot_s)),
)


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One setting that differs from the defaults.

    Attributes:
        name: As a person writes it, "OLLAMA_FLASH_ATTENTION=1"; names its arm.
        settings: Of its server.
        options: Of each request.
    """

    name: str
    settings: ServerSettings
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, defaults: ServerSettings) -> Knob:
        """Return the knob that a text names.

        Args:
            text: "OLLAMA_NAME=value", or "name=value" for a load-time option.
            defaults: What its server has else.

        Raises:
            SettingsError: There is no such setting, or its value is the default or is not one.
        """
        name, sign, value = text.partition("=")
        if not sign:
            raise SettingsError(f"a knob is NAME=VALUE, got {text!r}")
        if name.startswith("OLLAMA_"):
            asked, plain = server_settings_from_environment({name: value}), ServerSettings()
            changed = {
                one.name: getattr(asked, one.name)
                for one in fields(asked)
                if getattr(asked, one.name) != getattr(plain, one.name)
            }
            if not changed:
                known = name in ServerSettings(flash_attention=True).environment()
                why = "the default, or not readable" if known else GONE.get(name, "no setting of a server")
                raise SettingsError(f"{text} is {why}, so there is nothing to compare; take it away")
            return cls(name=text, settings=replace(defaults, **changed), options={})
        if name not in LOAD_OPTIONS:
            raise SettingsError(f"{text}: no load-time option {name!r}; there are {', '.join(LOAD_OPTIONS)}")
        try:
            options = {name: json.loads(value)}
        except json.JSONDecodeError as error:
            raise SettingsError(f"{text}: the value is neither a number nor true or false") from error
        parse_options(options)
        return cls(name=text, settings=defaults, options=options)

    @property
    def advice(self) -> Advice:
        """The setting, where a person would write it."""
        name, _, value = self.name.partition("=")
        if self.options:
            return Advice(part="request", setting=f"options.{name}", value=value)
        return Advice(part="server", setting=name, value=value)


async def open_knobs(
    experiment: Lab,
    target: str,
    model: str,
    knobs: Sequence[Knob],
    *,
    defaults: ServerSettings,
    others: Sequence[str] = (),
) -> dict[str, Subject]:
    """Open a server with the defaults and one per knob, side by side; nothing is loaded yet.

    Behind a URL the server as it is is the only one, and the knobs are noted as not run.

    Args:
        experiment: Closes them.
        target: "embedded", "ollama", or the URL of a server.
        model: That they are asked for.
        knobs: What differs.
        defaults: The settings of the first, which come before those of a knob.
        others: More models that they must have.
    """
    arms = {DEFAULTS: defaults} | {knob.name: knob.settings for knob in knobs}
    subjects = await experiment.subjects(target, model, arms, others=others)
    for knob in knobs:
        if knob.name in subjects:
            subjects[knob.name].options = knob.options
    return subjects


# What a knob does to a request


def knob_contrasts(trials: Trials, knobs: Sequence[Knob]) -> list[Comparison]:
    """Return each knob against the defaults: response (primary), first token, each further token."""
    return [
        trials.contrast(metric, statistic, arm=knob.name, baseline=DEFAULTS, is_primary=metric is _RESPONSE)
        for knob in knobs
        for metric, statistic in _STATISTICS
    ]


def settle_knobs(
    experiment: Lab, contrasts: Sequence[Comparison], knobs: Sequence[Knob], subject: Subject
) -> None:
    """Keep the primary contrast of each knob, with the setting that it speaks about."""
    advices = {knob.name: knob.advice for knob in knobs}
    for item in contrasts:
        if item.is_primary:
            experiment.settle("", item, subject, advice=advices[item.arm])


def rates_table(trials: Trials) -> Table:
    """Return how fast each arm reads a prompt and writes an answer: means over its launches."""
    columns: list[tuple[Column, Any, float]] = [
        (Column(name="Prefill", unit="tokens/s", format=".0f"), prefill_tokens_per_s, 1),
        (Column(name="Decode", unit="tokens/s", format=".0f"), decode_tokens_per_s, 1),
        (Column(name="First token", unit="ms", format=".0f"), ttft_s, 1e3),
        (Column(name="Response", unit="ms", format=".0f"), e2e_final_line_s, 1e3),
    ]
    rows = [
        [arm, len(trials.of(arm)), *(_scaled(trials.of(arm), metric, unit) for _, metric, unit in columns)]
        for arm in trials.arms
    ]
    return Table.of(
        "rates",
        "Prefill and decode with each setting",
        [Column(name="Setting"), Column(name="n"), *(column for column, _, _ in columns)],
        rows,
        caption="Means over n launches, one request each. Prefill and decode by the server's own durations; "
        "first token and response as the client sees them.",
    )


def _scaled(records: Sequence[RequestRecord], metric: Any, unit: float) -> float | None:
    value = mean_of(metric)(records)
    return None if value is None else value * unit


def knob_rows(contrasts: Sequence[Comparison]) -> pd.DataFrame:
    """Return the rows of ``plots.ratio_forest``: the setting and what was compared."""
    rows = [
        (
            f"{item.arm.removeprefix('OLLAMA_')}: {item.metric.name}",
            *(item.estimate, item.low, item.high, item.pairs),
        )
        for item in contrasts
    ]
    return pd.DataFrame(rows, columns=["label", "estimate", "low", "high", "n"])


def knobs_title(contrasts: Sequence[Comparison]) -> str:
    """Return which settings change a response, and of how many no difference was shown."""
    primary = [item for item in contrasts if item.is_primary]
    judged = [item for item in primary if item.verdict]
    if not any(item.pairs + item.lost_pairs for item in primary):
        return "Settings one at a time were not run here"
    if not judged:
        return "Settings one at a time: too few pairs for a verdict"
    shown = [item for item in judged if item.verdict and item.verdict.direction]
    named = [f"{item.arm} makes a response {item.estimate:.2f}× as long" for item in shown]
    rest = len(judged) - len(shown)
    if rest:
        named.append(f"no difference was shown for {plural(rest, 'setting')}")
    title = "; ".join(named)
    return title if shown else title.capitalize()


def knob_sentence(comparison: Comparison) -> str:
    """Return what a setting does to a response."""
    return f"Response with {comparison.arm} against the defaults: {result_text(comparison)}."


# What a knob does to memory


@dataclass(frozen=True, kw_only=True)
class Held:
    """A loaded model as ``/api/ps`` lists it.

    Attributes:
        size_bytes: Weights, cache and buffers.
        context_tokens: Per slot; None if the server does not say.
        stays_s: Until it is unloaded, when just used; None if the server does not say.
    """

    size_bytes: int
    context_tokens: int | None
    stays_s: float | None


async def held(subject: Subject) -> Held | None:
    """Return how the server lists its model, which is loaded for it; a server of ours unloads it again.

    None if the server does not keep it even for a moment.
    """
    await subject.load()
    entry = await subject.listing()
    if subject.target.changeable:
        await subject.unload()
    if entry is None:
        return None
    expires = entry.get("expires_at")
    left = datetime.fromisoformat(expires) - datetime.now(UTC) if expires else None
    return Held(
        size_bytes=int(entry["size"]),
        context_tokens=entry.get("context_length"),
        stays_s=None if left is None else left.total_seconds(),
    )


def held_table(listed: Mapping[str, Held | None]) -> Table:
    """Return what each setting costs in memory; the first is the one that the others are set against."""
    first = next(iter(listed.values()), None)
    rows = [
        (
            name,
            None if one is None else one.size_bytes / 1e6,
            one.size_bytes / first.size_bytes if one and first else None,
            None if one is None else one.context_tokens,
            None if one is None or one.stays_s is None else one.stays_s / 60,
        )
        for name, one in listed.items()
    ]
    return Table.of(
        "memory",
        "What the server says of the loaded model, by setting",
        [
            Column(name="Setting"),
            Column(name="Memory", unit="MB", format=",.0f"),
            Column(name="Of the first", format=".2f"),
            Column(name="Context", unit="tokens"),
            Column(name="Stays", unit="min", format=",.0f"),
        ],
        rows,
        caption="One load each, as /api/ps lists it: weights, key and value cache, and buffers; no interval, "
        "since equal settings take equally much. Stays: from the end of a request.",
    )


def memory_sentence(listed: Mapping[str, Held | None]) -> str:
    """Return which settings change the memory that the model takes, against the first."""
    (baseline, first), *others = listed.items()
    if first is None or not others:
        return "Memory was not compared here."
    sizes = {name: one.size_bytes / first.size_bytes for name, one in others if one}
    changed = [f"{ratio:.2f}× with {name}" for name, ratio in sizes.items() if ratio != 1]
    equal = [name for name, ratio in sizes.items() if ratio == 1]
    parts = [", ".join(changed)] if changed else []
    if equal:
        parts.append(f"the same to the byte with {', '.join(equal)}")
    return f"Memory of the loaded model, in times of that with the {baseline}: {'; '.join(parts)}."
