"""What a request costs, in tokens: the unit of fairness. Pure.

A token of the prompt counts half of one that is generated, as in the Virtual Token Counter (Sheng et
al., OSDI 2024): prompts are read many tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ollamalab.protocol.calls import Call

PROMPT_WEIGHT = 0.5

#: Of English text; enough for a booking that the true count replaces.
_CHARACTERS_PER_TOKEN = 4.0

#: Booked for an answer while nothing is known of its lane.
_USUAL_OUTPUT_TOKENS = 128.0


def cost_tokens(prompt_tokens: float, output_tokens: float) -> float:
    """Return what a request counts for, never less than 1: nothing is served for free."""
    return max(1.0, PROMPT_WEIGHT * prompt_tokens + output_tokens)


def expected_prompt_tokens(call: Call) -> float:
    """Return about how many tokens a request's text has; images count for nothing."""
    return sum(map(len, _texts(call.fields))) / _CHARACTERS_PER_TOKEN


def expected_output_tokens(call: Call, usual: float | None) -> float:
    """Return about how many tokens the answer will have: what is usual, or the limit if that is less.

    Args:
        call: The request.
        usual: The lane's running mean; None if it has none yet.
    """
    expected = _USUAL_OUTPUT_TOKENS if usual is None else usual
    most = call.num_predict
    return expected if most is None else min(expected, most)


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in ("prompt", "suffix", "system"):
        if name in fields:
            yield from _parts(fields[name])
    messages = fields.get("messages")
    if messages is None:  # /v1/responses has other names for it
        yield from _parts(fields.get("instructions"))
        messages = fields.get("input")
        if isinstance(messages, str):
            yield messages
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
        else:
            yield from _parts(content)


def _parts(content: object) -> Iterator[str]:
    """Give the text of a content that ``/v1`` may cut into parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text
