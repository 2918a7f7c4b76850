"""How well a model foretells a fixed text, token by token, asked of llama.cpp itself.

The engine is made to write the text: a grammar allows exactly one token at each place. For each it tells
the probability that the model gave it, and the model's own first choice, both from before the grammar had
its say. That takes one request and as long as decoding the text does. (llama.cpp does not tell the
probabilities of a prompt: it ignores ``echo``.)

Terms. *Perplexity*: exp(-mean log probability of the text's tokens); lower is better, and a model that knew
the text by heart would have 1. *Agreement*: share of places where two models have the same first choice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol, TypeVar

import msgspec

from ollamalab.compare import Comparison, Metric, Visit, compare_arms
from ollamalab.embedded import engine_http
from ollamalab.embedded.bodies import COMPLETION_PATH
from ollamalab.errors import BadReply, UpstreamTimeout, UpstreamUnavailable
from ollamalab.metrics import Share, wilson_share

#: What is scored: ours, so in no training data. Full stops stand at the ends of sentences only.
PASSAGE = (
    "A kettle of cold water stands on the stove. At first nothing seems to happen. After a few minutes "
    "small bubbles rise from the bottom. They break before they reach the surface, and the kettle begins "
    "to sing. Then the whole surface moves, and steam comes out of the spout. Water boils at one hundred "
    "degrees when the air around it has its usual pressure. On a high mountain the air is thinner, so "
    "water boils sooner and food takes longer to cook. A lid keeps the heat inside. Whoever waits beside "
    "the stove will say that it takes for ever. The clock says that it took four minutes."
)

PERPLEXITY = Metric(name="perplexity", better="lower")

_DEADLINE_S = 600.0
_OK = 200

Reply = TypeVar("Reply")


class Place(Protocol):
    """One place of the text, as a model saw it coming."""

    @property
    def text(self) -> str:
        """What stands there."""
        ...

    @property
    def best(self) -> Hashable:
        """What the model held most probable there."""
        ...

    @property
    def is_foretold(self) -> bool:
        """Whether that is what stands there."""
        ...

    @property
    def logprob(self) -> float | None:
        """Natural logarithm of the probability that the model gave the text; None if it is not told."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScore:
    """One token of the text, as a model saw it coming.

    Attributes:
        token_id: Of the text's token.
        text: What it says.
        logprob: Natural logarithm of the probability that the model gave it.
        best_id: Token that the model held most probable.
    """

    token_id: int
    text: str
    logprob: float
    best_id: int

    @property
    def best(self) -> int:
        """Token that the model held most probable."""
        return self.best_id

    @property
    def is_foretold(self) -> bool:
        """Whether that is the text's token."""
        return self.best_id == self.token_id


class _Token(msgspec.Struct):
    id: int
    logprob: float


class _Place(msgspec.Struct):
    id: int
    token: str
    logprob: float
    top_logprobs: list[_Token]


class _Completion(msgspec.Struct):
    completion_probabilities: list[_Place]


class _Tokens(msgspec.Struct):
    tokens: list[int]


async def score_text(engine_url: str, text: str = PASSAGE) -> tuple[TokenScore, ...]:
    """Return the scores of a text's tokens after the first, which stands for the start.

    A tokeniser that puts a token of its own before every text makes that one the first.

    Args:
        engine_url: Of a llama.cpp server, "http://127.0.0.1:PORT".
        text: With two tokens or more.

    Raises:
        UpstreamUnavailable: Nobody answers there.
        UpstreamTimeout: It took minutes.
        BadReply: It is no llama.cpp server, or one too old for grammars of tokens.
    """
    asked = {"content": text, "add_special": True}
    tokens = (await _post(engine_url, "/tokenize", asked, _Tokens)).tokens
    written = await _post(engine_url, COMPLETION_PATH, scoring_body(tokens), _Completion)
    scores = tuple(
        TokenScore(
            token_id=place.id, text=place.token, logprob=place.logprob, best_id=place.top_logprobs[0].id
        )
        for place in written.completion_probabilities
    )
    if [score.token_id for score in scores] != tokens[1:]:
        raise BadReply(
            f"{engine_url} did not write the {len(tokens)} tokens that its grammar asked for; "
            "llama.cpp of 2026 or newer is needed",
            url=engine_url,
        )
    return scores


def scoring_body(tokens: Sequence[int]) -> dict[str, Any]:
    """Return the body for ``/completion`` that makes the engine write these tokens and score them.

    Args:
        tokens: At least two; the first is the prompt.
    """
    return {
        "prompt": [tokens[0]],
        "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in tokens[1:]),
        "n_predict": len(tokens) - 1,
        "temperature": 0.0,
        "n_probs": 1,
        "post_sampling_probs": False,  # from the logits as they are: no grammar, no temperature
        "cache_prompt": False,
    }


def perplexity(scores: Iterable[Place]) -> float | None:
    """Return exp(-mean log probability) of one place or more; None if a probability is not told."""
    logprobs = [score.logprob for score in scores]
    known = [logprob for logprob in logprobs if logprob is not None]
    return math.exp(-fmean(known)) if len(known) == len(logprobs) else None


def foretold(scores: Sequence[Place]) -> Share:
    """Return at how many places the model's first choice was the text's own."""
    return wilson_share(sum(score.is_foretold for score in scores), len(scores))


def agreement(scores: Sequence[Place], reference: Sequence[Place]) -> Share:
    """Return at how many places two models have the same first choice; its interval is Wilson's.

    Raises:
        BadReply: They split the text into different tokens, so they are not variants of one model.
    """
    if [score.text for score in scores] != [score.text for score in reference]:
        raise BadReply("the models split the text differently; are they variants of one model?")
    same = sum(one.best == other.best for one, other in zip(scores, reference, strict=True))
    return wilson_share(same, len(scores))


def sentences_of(scores: Iterable[Place]) -> list[list[Place]]:
    """Return the places sentence by sentence; a full stop ends one."""
    found: list[list[Place]] = [[]]
    for score in scores:
        if found[-1] and "." in found[-1][-1].text:
            found.append([])
        found[-1].append(score)
    return found


def compare_perplexity(
    scores: Mapping[str, Sequence[Place]], *, arm: str, baseline: str, is_primary: bool
) -> Comparison:
    """Return one model's perplexity against another's, with the sentences as pairs.

    The numbers themselves do not vary: the interval says how far the ratio would carry to other sentences of
    the kind.

    Args:
        scores: Of the same text, by model.
        arm: One of them.
        baseline: Another one.
        is_primary: Whether it settles a question.
    """
    values: dict[Visit, float | None] = {
        Visit(index=2 * number + place, block=number, arm=name): perplexity(sentence)
        for place, name in enumerate((arm, baseline))
        for number, sentence in enumerate(sentences_of(scores[name]))
    }
    return compare_arms(values, PERPLEXITY, arm=arm, baseline=baseline, is_primary=is_primary)


async def _post(url: str, path: str, body: Mapping[str, Any], kind: type[Reply]) -> Reply:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            reply = await engine_http.send(url, "POST", path, msgspec.json.encode(body))
            try:
                answer = await reply.read()
            finally:
                reply.close()
    except TimeoutError as error:
        text = f"no answer from {url}{path} in {_DEADLINE_S:g} s"
        raise UpstreamTimeout(text, url=url, after_s=_DEADLINE_S) from error
    except OSError as error:
        raise UpstreamUnavailable(f"cannot reach {url}{path} ({error})", url=url) from error
    try:
        if reply.status != _OK:
            raise ValueError(answer[:200].decode(errors="replace"))
        return msgspec.json.decode(answer, type=kind)
    except ValueError as error:  # msgspec's are too
        raise BadReply(f"{url}{path} answered {reply.status}: {error}", url=url) from error
