"""What requests for one model take, whoever answers them: to foretell the next one. Pure."""

from __future__ import annotations

import math

from ollamalab.protocol.calls import Call
from ollamalab.queueing.cost import PROMPT_WEIGHT, expected_output_tokens, expected_prompt_tokens
from ollamalab.queueing.work import Work

#: Share that the latest value has in a running mean.
_NEWS = 0.2


class Usual:
    """Running means over the answers of one model.

    Prompts are read much faster than answers are written, by how much depends on the engine and on what
    it finds in its cache. Counted alike, a server would look slow because it got the long prompts, or
    fast because it got the long answers. So a token of the prompt counts for what it has been seen to
    take, and *tokens* here mean generated ones and the equivalent of the prompt's.

    Attributes:
        output_tokens: Of an answer lately; None before the first.
        prompt_weight: What a token of the prompt takes, in generated ones; at most 1.
        answered_s: When the last answer ended; -inf before the first.
    """

    __slots__ = ("answered_s", "output_tokens", "prompt_weight")

    def __init__(self) -> None:
        self.output_tokens: float | None = None
        self.prompt_weight = PROMPT_WEIGHT
        self.answered_s = -math.inf

    def note(self, work: Work, now_s: float) -> None:
        """Take note of an answer that has come to its end."""
        if work.output_tokens is None:
            return
        self.answered_s = now_s
        known = work.output_tokens if self.output_tokens is None else self.output_tokens
        self.output_tokens = known + _NEWS * (work.output_tokens - known)
        weight = _prompt_weight(work)
        if weight is not None:
            self.prompt_weight += _NEWS * (weight - self.prompt_weight)

    def expected_tokens(self, call: Call) -> float:
        """Return what a request will probably take, in tokens as above."""
        output_tokens = expected_output_tokens(call, self.output_tokens)
        return output_tokens + self.prompt_weight * expected_prompt_tokens(call)

    def tokens_of(self, work: Work) -> float:
        """Return what an answer took, in tokens as above; its prompt counts only if its time does."""
        read = 0 if work.busy_s is None else work.prompt_tokens or 0
        return (work.output_tokens or 0) + self.prompt_weight * read


def _prompt_weight(work: Work) -> float | None:
    """Return what a token of the prompt took, in generated ones; None if the answer does not tell.

    The clock of the output starts after its first token.
    """
    if work.busy_s is None or work.prompt_s is None or not work.prompt_tokens:
        return None
    output_s = work.busy_s - work.prompt_s
    if (work.output_tokens or 0) < 2 or output_s <= 0:
        return None
    per_output_s = output_s / ((work.output_tokens or 0) - 1)
    return min(work.prompt_s / work.prompt_tokens / per_output_s, 1.0)
