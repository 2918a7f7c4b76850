"""Variants of one model: names, launches, memory, and a text scored token by token by a real engine."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest
from lab_samples import compared, done
from ollama_standin import free_url, serving

from ollamalab import lab
from ollamalab.compare import Metric, Visit
from ollamalab.embedded import engine_http
from ollamalab.embedded.models import DEFAULT_MODEL
from ollamalab.errors import BadReply, SamplerUnavailable, UpstreamUnavailable
from ollamalab.hosts import open_target
from ollamalab.lab import Launches, Memory, PromptShape, Scored, Subject, TokenScore, Trials, Variant
from ollamalab.lab.guesses import Guess
from ollamalab.lab.quantising import engine_of, variant_names
from ollamalab.lab.scoring import agreement, foretold, perplexity, scoring_body, sentences_of
from ollamalab.metrics import decode_tokens_per_s, stages
from ollamalab.records import Outcome, RequestRecord, ServerTimings
from ollamalab.settings import ServerSettings

DERIVED = f"{DEFAULT_MODEL}-q8_0"
SHAPE = PromptShape(prompt_tokens=64, num_predict=2)
RATE = Metric(name="decode_tokens_per_s", unit="tokens/s", better="higher")
TEXT = "A lid keeps the heat inside. The clock says four."


def score(text: str, logprob: float = -1.0, *, token_id: int = 1, best_id: int = 1) -> TokenScore:
    return TokenScore(token_id=token_id, text=text, logprob=logprob, best_id=best_id)


SURE = [score(" a", -0.5, token_id=7, best_id=7), score(".", -0.5, token_id=8, best_id=8)]
UNSURE = [score(" a", -1.5, token_id=7, best_id=7), score(".", -2.5, token_id=8, best_id=9)]

# Scores


def test_a_model_that_hesitates_among_n_equal_tokens_has_perplexity_n() -> None:
    assert perplexity([score("x", math.log(1 / 30))] * 4) == pytest.approx(30)
    assert perplexity([score("x", 0.0)]) == 1


def test_first_choices_are_counted_against_the_text_and_against_another_model() -> None:
    assert foretold(UNSURE).ratio == 0.5
    same = agreement(UNSURE, SURE)
    assert (same.count, same.of) == (1, 2)
    assert agreement(SURE, SURE).ratio == 1


def test_models_that_split_the_text_differently_are_not_compared() -> None:
    with pytest.raises(BadReply, match="variants of one model"):
        agreement(SURE, [*UNSURE[:1], score("!", token_id=9)])


def test_a_full_stop_ends_a_sentence_and_what_follows_is_another() -> None:
    found = sentences_of([score(" One"), score("."), score(" And"), score(" two"), score(".\n")])
    assert [len(sentence) for sentence in found] == [2, 3]
    assert len(sentences_of([score(" no"), score(" end")])) == 1


def test_the_grammar_allows_one_token_at_each_place_after_the_first() -> None:
    body = scoring_body([5, 17, 3])
    assert body["prompt"] == [5]
    assert body["grammar"] == "root ::= <[17]> <[3]>"
    assert body["n_predict"] == 2
    assert body["post_sampling_probs"] is False


def test_perplexities_are_compared_sentence_by_sentence() -> None:
    """Each sentence is a pair; eight of them carry a verdict."""
    scores = {"poor": UNSURE * 8, "good": SURE * 8}
    found = lab.compare_perplexity(scores, arm="poor", baseline="good", is_primary=True)
    assert found.pairs == 8
    assert found.estimate == pytest.approx(math.exp(1.5))
    assert found.verdict
    assert found.verdict.direction == "higher"
    assert found.verdict.is_better is False


async def test_no_llama_server_and_one_that_is_no_llama_server_are_told_apart() -> None:
    with pytest.raises(UpstreamUnavailable, match="cannot reach"):
        await lab.score_text(free_url(), TEXT)
    with serving({}) as url, pytest.raises(BadReply, match="/tokenize answered"):
        await lab.score_text(url, TEXT)


# On a real engine


@pytest.fixture(scope="module")
async def variants() -> AsyncIterator[dict[str, Variant]]:
    """The small model and one that was derived from it, on one embedded server."""
    await lab.have_models("embedded", DEFAULT_MODEL, DERIVED)
    settings = ServerSettings(context_length=256, num_threads=1)
    async with (
        open_target("embedded", settings, models=[DEFAULT_MODEL, DERIVED]) as target,
        Subject(target, DEFAULT_MODEL, seed=1) as source,
        Subject(target, DERIVED, seed=1) as derived,
    ):
        plain = Variant(name="Q4_1", subject=source, file_bytes=100, weights=160, derived_from=None)
        yield {
            "Q4_1": plain,
            "Q8_0": replace(plain, name="Q8_0", subject=derived, derived_from=f"{DEFAULT_MODEL} Q4_1"),
        }


async def test_a_server_without_a_known_engine_tells_first_choices_word_by_word(
    variants: dict[str, Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the API, the words foretold are those that the engine foretells token by token."""
    by_tokens = await lab.score_variants(variants, TEXT)

    async def unknown(_: Subject) -> None:
        raise SamplerUnavailable("its API does not tell its engines")

    monkeypatch.setattr("ollamalab.lab.quality.engine_of", unknown)
    by_words = await lab.score_variants(variants, TEXT)
    assert by_words.words_only == "its API does not tell its engines"
    assert not by_words.not_run
    for name, guesses in by_words.scores.items():
        assert "".join(each.text for each in guesses) == TEXT.removeprefix("A")
        words = [each for each in by_tokens.scores[name] if each.text.startswith(" ")]
        assert [each.is_foretold for each in guesses] == [each.is_foretold for each in words]
        assert any(each.is_foretold for each in guesses)
        assert perplexity(guesses) is None


def guess(text: str, best: str) -> Guess:
    return Guess(text=text, best=best)


def test_a_word_is_foretold_by_the_token_that_it_begins_with() -> None:
    assert guess(" boils", " boil").is_foretold
    assert guess(" boils", " boils").is_foretold
    assert not guess(" boils", " boiled").is_foretold
    assert not guess(" boils", " ").is_foretold  # says nothing of the word
    assert not guess(" boils", "").is_foretold  # the model would have ended here


def test_what_words_alone_tell_is_agreement_and_no_perplexity(variants: dict[str, Variant]) -> None:
    sure = [guess(" a", " a"), guess(" b.", " b")]
    scores = {"Q4_1": sure * 8, "Q8_0": [sure[0], guess(" b.", " c")] * 8}
    scored = Scored(scores=scores, not_run={}, words_only="no engine is known")
    table = lab.quality_table(scored, reference="Q4_1")
    (_, same, unknown, ratio, right, n) = next(row for row in table.rows if row[0] == "Q8_0")
    assert isinstance(same, tuple)
    assert isinstance(right, tuple)
    assert (same[0], unknown, right[0], n) == (0.5, None, 0.5, 16)
    assert ratio is None
    assert "n words" in table.caption
    originals = {name: replace(variant, derived_from=None) for name, variant in variants.items()}
    sentence = lab.agreement_sentence(scored, originals, arm="Q8_0", reference="Q4_1")
    assert sentence.startswith("Q8_0 and Q4_1 have the same first choice at 50% of 16 places")
    assert "perplexity" not in sentence
    assert "no engine is known" in (lab.why_no_quality(originals["Q8_0"], scored) or "")


async def test_a_score_is_what_the_model_says_without_any_grammar(variants: dict[str, Variant]) -> None:
    """Probability and first choice are from before the grammar: as in a plain request for the next token."""
    scored = await lab.score_variants(variants, TEXT)
    assert not scored.not_run
    scores = scored.scores["Q4_1"]
    assert "".join(each.text for each in scores) == TEXT.removeprefix("A")
    assert [len(sentence) for sentence in sentences_of(scores)] == [6, 5]
    url = (await engine_of(variants["Q4_1"].subject)).url
    tokens = [each.token_id for each in scores]
    start = await _ask(url, "/tokenize", {"content": "A"})
    for place in (0, 4):
        plain = {
            "prompt": [*start["tokens"], *tokens[:place]],
            "n_predict": 1,
            "n_probs": 1,
            "temperature": 0,
        }
        (said,) = (await _ask(url, "/completion", plain))["completion_probabilities"]
        assert said["id"] == scores[place].best_id
        if scores[place].best_id == tokens[place]:
            assert said["logprob"] == pytest.approx(scores[place].logprob, abs=0.05)
        else:
            assert said["logprob"] > scores[place].logprob
    assert agreement(scored.scores["Q8_0"], scores).of == len(scores)


async def _ask(url: str, path: str, body: dict[str, object]) -> dict[str, list[dict[str, float]]]:
    reply = await engine_http.send(url, "POST", path, json.dumps(body).encode())
    try:
        answer: dict[str, list[dict[str, float]]] = json.loads(await reply.read())
    finally:
        reply.close()
    return answer


async def test_memory_is_that_of_the_engine_which_has_the_model(variants: dict[str, Variant]) -> None:
    """Twice the bits take more of it; a server of another host tells the part that its API has."""
    small, large = [await lab.memory_of(variant) for variant in variants.values()]
    assert small.listed_bytes
    assert large.listed_bytes
    assert small.resident_bytes
    assert large.resident_bytes
    assert large.listed_bytes > small.listed_bytes
    assert large.resident_bytes > small.resident_bytes
    assert small.total_bytes == small.resident_bytes
    assert replace(small, vram_bytes=5).total_bytes == small.resident_bytes + 5
    assert replace(small, resident_bytes=None).total_bytes == small.listed_bytes
    table = lab.variants_table(variants, {"Q4_1": small, "Q8_0": replace(large, resident_bytes=None)})
    assert [row[0] for row in table.rows] == ["Q4_1", "Q8_0"]
    assert table.rows[0][2] == 5.0  # 100 bytes, 160 weights
    assert table.rows[1][-1] is None


async def test_engines_are_launched_anew_before_each_group_of_blocks(variants: dict[str, Variant]) -> None:
    visits = Launches(variants=variants, shape=SHAPE, pairs=4, launches=2, seed=3)
    assert visits.blocks_per_launch == 1  # two variants: blocks of four visits, two pairs each
    pids = [await _pids(variants)]
    visitors = visits.visitors()
    records: list[RequestRecord] = []
    for block in (0, 1):
        for name, visitor in visitors.items():
            seen = await visitor(Visit(index=block, block=block, arm=name))
            records += [replace(record, arm=name, block=block, visit=len(records)) for record in seen]
        pids.append(await _pids(variants))
    assert not set(pids[0]) & set(pids[1])
    assert not set(pids[1]) & set(pids[2])
    assert [record.outcome for record in records] == [Outcome.OK] * 4
    trials = visits.load_trials()
    assert sorted((record.arm, record.block) for record in trials.records) == [
        ("Q4_1", 0),
        ("Q4_1", 1),
        ("Q8_0", 0),
        ("Q8_0", 1),
    ]
    cold = [stages(record).load_s or 0 for record in trials.records]
    warm = [stages(record).load_s or 0 for record in records]
    assert min(cold) > max(warm)


async def _pids(variants: dict[str, Variant]) -> tuple[int, ...]:
    for variant in variants.values():
        await variant.subject.client.preload(variant.subject.model)
    found = [(await engine_of(variant.subject)).pid for variant in variants.values()]
    assert all(psutil.pid_exists(pid) for pid in found)
    return tuple(found)


# What is named and shown


async def test_an_engine_that_does_not_let_itself_be_known_leaves_its_variants_unscored() -> None:
    """As behind an Ollama on another host: shown as not run, with the reason."""
    answers = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": []}}
    with serving(answers) as url:
        async with open_target(url) as target, Subject(target, "m", seed=0) as subject:
            with pytest.raises(SamplerUnavailable, match="does not let its engines be asked"):
                await engine_of(subject)


def test_variants_are_named_by_their_format_where_that_tells_them_apart() -> None:
    def shown(level: str | None) -> dict[str, object]:
        return {"details": {"quantization_level": level}}

    assert variant_names({"a:f16": shown("F16"), "a:q4": shown("Q4_0")}) == {"a:f16": "F16", "a:q4": "Q4_0"}
    alike = {"a": shown("Q4_0"), "b": shown("Q4_0"), "c": shown("F16"), "d": shown(None), "e": {}}
    assert variant_names(alike) == {"a": "a", "b": "b", "c": "F16", "d": "d", "e": "e"}


def launched(rates: dict[str, list[float]], variants: dict[str, Variant]) -> tuple[Launches, Trials]:
    """Return visits, one per block, that decode so many tokens a second."""
    records = [
        replace(
            done(name, visit=10 * block + place, block=block),
            server=ServerTimings(
                total_s=1.0, load_s=0.0, prompt_tokens=1, prompt_eval_s=0.1, eval_tokens=11, eval_s=10 / rate
            ),
        )
        for place, (name, values) in enumerate(rates.items())
        for block, rate in enumerate(values)
    ]
    visits = Launches(variants=variants, shape=SHAPE, pairs=len(records) // len(rates), launches=2, seed=0)
    return visits, Trials(arms=tuple(rates), records=tuple(records))


def test_the_spread_is_that_between_launches_not_between_visits(variants: dict[str, Variant]) -> None:
    named = {**variants, "F16": variants["Q4_1"]}
    rates = {"Q4_1": [10.0, 30.0, 30.0, 10.0], "Q8_0": [10.0, 10.0, 20.0, 20.0], "F16": [5.0] * 4}
    visits, trials = launched(rates, named)
    statistic = lab.mean_of(decode_tokens_per_s)
    assert visits.blocks_per_launch == 2
    assert visits.spread(trials, "Q4_1", statistic) == pytest.approx(0)
    assert visits.spread(trials, "Q8_0", statistic) == pytest.approx(math.log(2) / math.sqrt(2))
    assert "Q8_0 49%" in visits.spread_note(trials, statistic)


def test_a_server_that_keeps_its_models_has_no_loads_to_compare(variants: dict[str, Variant]) -> None:
    visits = Launches(
        variants=variants, shape=SHAPE, pairs=8, launches=4, seed=0, why_kept="somebody uses them"
    )
    found = visits.load_trials().contrast(RATE, lambda _: None, arm="Q8_0", baseline="Q4_1")
    assert found.reason == "not run: somebody uses them"


def test_quality_is_told_of_originals_only(variants: dict[str, Variant]) -> None:
    scored = Scored(scores={"Q4_1": SURE, "Q8_0": UNSURE}, not_run={})
    assert lab.why_no_quality(variants["Q4_1"], scored) is None
    reason = lab.why_no_quality(variants["Q8_0"], scored)
    assert reason
    assert "quantised already (smollm2:135m Q4_1)" in reason
    unknown = Scored(scores={}, not_run={"Q4_1": "no engine to ask"})
    assert "no engine to ask" in (lab.why_no_quality(variants["Q4_1"], unknown) or "")


def test_agreement_is_never_called_quality_of_a_derived_variant(variants: dict[str, Variant]) -> None:
    scored = Scored(scores={"Q4_1": SURE, "Q8_0": UNSURE}, not_run={})
    sentence = lab.agreement_sentence(scored, variants, arm="Q8_0", reference="Q4_1")
    assert "same first choice at 50% of 2 places" in sentence
    assert sentence.endswith("agreement, not quality.")
    lost = replace(scored, scores={"Q4_1": SURE}, not_run={"Q8_0": "no engine to ask"})
    assert "not run: no engine" in lab.agreement_sentence(lost, variants, arm="Q8_0", reference="Q4_1")


def test_the_table_of_quality_sets_all_against_the_reference_and_names_who_is_missing() -> None:
    scored = Scored(scores={"Q4_1": SURE * 8, "Q8_0": UNSURE * 8}, not_run={"F16": "no engine to ask"})
    table = lab.quality_table(scored, reference="Q4_1")
    rows = {row[0]: row for row in table.rows}
    assert rows["Q4_1"][1] is None
    same, ratio = rows["Q8_0"][1], rows["Q8_0"][3]
    assert isinstance(same, tuple)
    assert isinstance(ratio, tuple)
    assert same[0] == 0.5
    assert ratio[0] == pytest.approx(math.exp(1.5))
    assert rows["F16"][-1] == "not run: no engine to ask"
    whole = lab.quality_table(replace(scored, not_run={}), reference="Q4_1")
    assert len(whole.columns) == len(table.columns) - 1


def test_the_figure_has_rate_memory_and_agreement_of_each(variants: dict[str, Variant]) -> None:
    visits, trials = launched({"Q4_1": [10.0] * 8, "Q8_0": [20.0] * 8}, variants)
    statistic = lab.mean_of(decode_tokens_per_s)
    memory = {
        "Q4_1": Memory(listed_bytes=1, vram_bytes=0, resident_bytes=200_000_000),
        "Q8_0": Memory(listed_bytes=1, vram_bytes=100_000_000, resident_bytes=200_000_000),
    }
    scored = Scored(scores={"Q4_1": SURE, "Q8_0": UNSURE}, not_run={})
    points = lab.trade_points(trials, statistic, memory, scored, reference="Q4_1").set_index("label")
    assert points.loc["Q8_0", "x"] == pytest.approx(300)
    assert points.loc["Q8_0", "value"] == pytest.approx(20)
    assert list(points["note"]) == ["the reference", "50% as Q4_1"]
    untold = dict.fromkeys(memory, Memory(listed_bytes=None, vram_bytes=None, resident_bytes=None))
    assert lab.trade_points(trials, statistic, untold, scored, reference="Q4_1").empty
    faster = trials.contrast(RATE, statistic, arm="Q8_0", baseline="Q4_1", is_primary=True)
    assert lab.trade_title(faster, memory) == "Q8_0 decodes at 2.00× the rate of Q4_1, in 150% of the memory"
    alike = compared(RATE, [(1.0, 1.0)] * 8, arm="Q8_0", baseline="Q4_1")
    assert lab.trade_title(alike, memory).endswith("was shown; it takes 150% of the memory")
    assert "2.00×" in lab.rate_sentence(faster)
    assert visits.loads == []
