"""What variants of one model make of the same text, beside what they cost: tables, figures, sentences."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ollamalab.compare import Comparison
from ollamalab.errors import SamplerUnavailable, UpstreamError
from ollamalab.lab.frames import sweep_points
from ollamalab.lab.guesses import guess_words
from ollamalab.lab.quantising import Memory, Variant, engine_of
from ollamalab.lab.scoring import (
    PASSAGE,
    Place,
    agreement,
    compare_perplexity,
    foretold,
    perplexity,
    score_text,
)
from ollamalab.lab.sentences import result_text
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Statistic, Trials, not_run_text
from ollamalab.metrics import Share
from ollamalab.report import Column, Table

_MB = 1e6

_BY_TOKENS = (
    "n tokens of a text of ours, each told with all before it known. Shares with 95 % Wilson "
    "intervals; × with the sentences as pairs (Hodges–Lehmann, exact 95 % interval). Text foretold: the "
    "model's first choice was the text's own word."
)
_BY_WORDS = (
    "n words of a text of ours, before each of which the model was asked through the API for the one token "
    "with which it would go on. Shares with 95 % Wilson intervals. Text foretold: the word begins with that "
    "token. Perplexity: n/a, since the API does not tell how probable a given text is."
)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the variants make of the same text.

    Attributes:
        scores: By variant.
        not_run: Variants that could not be asked, with the reason.
        words_only: Why they told their first choices alone, word by word; None if they told all.
    """

    scores: Mapping[str, Sequence[Place]]
    not_run: Mapping[str, str]
    words_only: str | None = None


async def score_variants(variants: Mapping[str, Variant], text: str = PASSAGE) -> Scored:
    """Let every variant foretell the same text, one after the other.

    Engines are asked token by token (``scoring``). If a server does not let its engine be known, all are
    asked word by word through the API (``guesses``), so that they stay comparable.
    """

    async def by_tokens(subject: Subject) -> Sequence[Place]:
        await subject.client.preload(subject.model)
        return await score_text((await engine_of(subject)).url, text)

    async def by_words(subject: Subject) -> Sequence[Place]:
        return await guess_words(subject.client, subject.model, text)

    try:
        return await _ask_each(variants, by_tokens)
    except SamplerUnavailable as error:
        return replace(await _ask_each(variants, by_words), words_only=str(error))


async def _ask_each(
    variants: Mapping[str, Variant], ask: Callable[[Subject], Awaitable[Sequence[Place]]]
) -> Scored:
    scores: dict[str, Sequence[Place]] = {}
    not_run = {}
    for name, variant in variants.items():
        try:
            scores[name] = await ask(variant.subject)
        except UpstreamError as error:
            not_run[name] = str(error)
    return Scored(scores=scores, not_run=not_run)


def quality_table(scored: Scored, *, reference: str) -> Table:
    """Return perplexity and agreement of each variant, against a reference."""
    rows: list[Sequence[object]] = []
    for name, scores in scored.scores.items():
        ratio, same = None, None
        if name != reference and reference in scored.scores:
            found = compare_perplexity(scored.scores, arm=name, baseline=reference, is_primary=False)
            ratio = found.effect
            same = _interval(agreement(scores, scored.scores[reference]))
        right = _interval(foretold(scores))
        rows.append((name, same, perplexity(scores), ratio, right, len(scores), ""))
    rows += [(name, *([None] * 5), not_run_text(reason)) for name, reason in scored.not_run.items()]
    columns = [
        Column(name="Variant"),
        Column(name=f"Same first choice as {reference}", format=".0%"),
        Column(name="Perplexity", format=".1f"),
        Column(name=f"× {reference}", format=".2f"),
        Column(name="Text foretold", format=".0%"),
        Column(name="n"),
        Column(name="Note"),
    ]
    if not scored.not_run:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table.of(
        "quality",
        f"Foretelling the same text, against {reference}",
        columns,
        rows,
        caption=_BY_WORDS if scored.words_only else _BY_TOKENS,
    )


def why_no_quality(variant: Variant, scored: Scored) -> str | None:
    """Return why a variant's quality cannot be told; None if it can."""
    if variant.derived_from is not None:
        return (
            f"the quality half of the claim; {variant.name} was made from a file that was quantised already "
            f"({variant.derived_from.partition(' sha256')[0]}), so it can show agreement with that file and "
            "no more, while a host with the original tags shows quality"
        )
    if reason := scored.not_run.get(variant.name):
        return f"the quality half of the claim; {reason}"
    if scored.words_only:
        return (
            f"the quality half of the claim; {scored.words_only}, and Ollama's API tells first choices, not "
            "how probable a given text is; target=ollama tells it"
        )
    return None


def _interval(share: Share) -> tuple[float | None, float | None, float | None]:
    return share.ratio, share.low, share.high


def trade_points(
    trials: Trials,
    statistic: Statistic,
    memory: Mapping[str, Memory],
    scored: Scored,
    *,
    reference: str,
) -> pd.DataFrame:
    """Return the rows of ``plots.trade_off``: rate against memory in MB, with the agreement as note."""
    settings = {name: total / _MB for name in trials.arms if (total := memory[name].total_bytes) is not None}
    rates = {name: sweep_points(trials, {name: place}, statistic) for name, place in settings.items()}
    found = []
    for name, points in rates.items():
        note = ""
        if name == reference:
            note = "the reference"
        elif name in scored.scores and reference in scored.scores:
            share = agreement(scored.scores[name], scored.scores[reference])
            note = f"{share.ratio:.0%} as {reference}"
        found.append(points.assign(label=name, note=note))
    columns = ["x", "value", "low", "high", "label", "note"]
    return pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)


def trade_title(rate: Comparison, memory: Mapping[str, Memory]) -> str:
    """Return what the smaller variant gains in speed, and what it takes of the memory."""
    own, other = memory[rate.arm].total_bytes, memory[rate.baseline].total_bytes
    share = f"{own / other:.0%} of the memory" if own and other else ""
    if rate.estimate is None or rate.verdict is None or rate.verdict.direction is None:
        words = f"{rate.arm} against {rate.baseline}: no difference in decode rate was shown"
        return f"{words}; it takes {share}" if share else words
    words = f"{rate.arm} decodes at {rate.estimate:.2f}× the rate of {rate.baseline}"
    return f"{words}, in {share}" if share else words


def rate_sentence(comparison: Comparison) -> str:
    """Return what the format does to the decode rate."""
    return f"Decode rate, {comparison.arm} against {comparison.baseline}: {result_text(comparison)}."


def agreement_sentence(scored: Scored, variants: Mapping[str, Variant], *, arm: str, reference: str) -> str:
    """Return how far a variant says the same as the reference, and whether that is its quality."""
    if missing := scored.not_run.get(arm) or scored.not_run.get(reference):
        return f"Agreement of {arm} and {reference}: {not_run_text(missing)}."
    share = agreement(scored.scores[arm], scored.scores[reference])
    own, other = perplexity(scored.scores[arm]), perplexity(scored.scores[reference])
    ratio = f"; perplexity {own / other:.2f}×" if own is not None and other is not None else ""
    derived = variants[arm].derived_from is not None
    meaning = " It was derived, so this is agreement, not quality." if derived else ""
    return (
        f"{arm} and {reference} have the same first choice at {share.ratio:.0%} of {share.of} places (95 % "
        f"interval {share.low:.0%}–{share.high:.0%}){ratio}.{meaning}"
    )
