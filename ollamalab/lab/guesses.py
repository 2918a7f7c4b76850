"""How a model would go on at each word of a fixed text, asked through Ollama's API.

For servers whose engines cannot be asked, as behind a URL. Ollama's API does not tell how probable a given
text is, but what a model would say next: one token after each word of the text, the most probable one. So
variants can be compared by their first choices, and perplexity stays unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ollamalab.client import OllamaClient

#: The most probable token and no other: neither chance nor what was said before has a say.
_GREEDY = {"num_predict": 1, "temperature": 0, "repeat_penalty": 1.0, "presence_penalty": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """One word of the text, as a model saw it coming.

    Attributes:
        text: The word, with the space before it.
        best: Token that the model held most probable; "" for the end of the text.
        logprob: How probable it held the word: not told.
    """

    text: str
    best: str
    logprob: ClassVar[None] = None

    @property
    def is_foretold(self) -> bool:
        """Whether the word begins with what the model would have said."""
        return bool(self.best.strip()) and self.text.startswith(self.best)


async def guess_words(client: OllamaClient, model: str, text: str) -> tuple[Guess, ...]:
    """Return what a model would have said instead of each word of a text after the first.

    Asked without a template, one request for each word; a server keeps the words before it.

    Args:
        client: Of a server.
        model: That it has.
        text: With two words or more, a space between them.

    Raises:
        UpstreamError: No good answer.
    """
    found = []
    for known, word in _places(text):
        answer = await client.generate(model, known, raw=True, options=_GREEDY)
        found.append(Guess(text=word, best=answer.text))
    return tuple(found)


def _places(text: str) -> Iterator[tuple[str, str]]:
    """Give what is known and the word that follows, for each word after the first."""
    first, *words = text.split(" ")
    known = first
    for word in words:
        yield known, f" {word}"
        known = f"{known} {word}"
