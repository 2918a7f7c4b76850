"""What a request costs, in tokens: the unit of fairness. Pure.

A token of the prompt counts half of one that is generated, as in the Virtual Token Counter (Sheng et
al., OSDI 2024): prompts are read many tokens at a time.
"""

from __future__ import annotations

from ollamalab.protocol.calls import Call

PROMPT_WEIGHT = 0.5

#: Of English text; enough for a booking that the true count replaces.
_CHARACTERS_PER_TOKEN = 4.0

#: Fields that are text of the prompt, beside the messages.
_TEXTS = ("prompt", "suffix", "system")

#: Booked for an answer while nothing is known of its lane.
_USUAL_OUTPUT_TOKENS = 128.0


def cost_tokens(prompt_tokens: float, output_tokens: float) -> float:
    """Return what a request counts for, never less than 1: nothing is served for free."""
    return max(1.0, PROMPT_WEIGHT * prompt_tokens + output_tokens)


def expected_prompt_tokens(call: Call) -> float:
    """Return about how many tokens a request's text has; images count for nothing."""
    fields = call.fields
    characters = 0
    for name in _TEXTS:
        if name in fields:
            characters += _characters(fields[name])
    messages = fields.get("messages")
    if messages is None:  # /v1/responses has other names for it
        characters += _characters(fields.get("instructions"))
        messages = fields.get("input")
        if isinstance(messages, str):
            characters += len(messages)
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                characters += _characters(message.get("content"))
    return characters / _CHARACTERS_PER_TOKEN


def expected_output_tokens(call: Call, usual: float | None) -> float:
    """Return about how many tokens the answer will have: what is usual, or the limit if that is less.

    Args:
        call: The request.
        usual: The lane's running mean; None if it has none yet.
    """
    expected = _USUAL_OUTPUT_TOKENS if usual is None else usual
    most = call.num_predict
    return expected if most is None else min(expected, most)


def _characters(content: object) -> int:
    """Return how long a content is that ``/v1`` may cut into parts."""
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return sum(len(text) for text in texts if isinstance(text, str))
