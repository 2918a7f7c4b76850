"""What each request says: prompts of chosen length, kept out of the prompt cache, as request bodies.

A server keeps what it has evaluated and skips a shared beginning. A *nonce* is a number that no other
request has; put before the first token that two requests could share, it makes every prompt cost its
full evaluation. Even the chat template's own default system prompt is such a beginning, so the nonce
opens the system message, and a prompt without one gets one.

*Output length*: Ollama has no option that keeps a model from ending early. Prompts drawn here give a few
words and ask for a very long story, at temperature 0; SmolLM2-135M then wrote on past ``num_predict`` in
all of 144 answers of 32 to 512 tokens. Asked to count to 1000 it ended after 122 tokens, and a story
"about" such words, or a list of 500 things, ended early now and then. Records show what was generated
beside what was asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from ollamalab.errors import SettingsError
from ollamalab.protocol.upstream import Request

#: Common words that are one token each after a space in the usual vocabularies.
_WORD_LIST = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city community
name president team minute idea body information back parent face level office door health person
art war history party result change morning reason research girl moment air teacher force education
"""
WORDS = tuple(_WORD_LIST.split())

#: Tokens of a drawn prompt besides its words: template, nonce and task (ChatML: 60).
OVERHEAD_TOKENS = 60

_SYSTEM = "You are a helpful assistant."
_TASK = "Write a very long story, of at least 3000 words, in which they occur. Do not stop early."


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What one request says and how long its answer may be.

    Attributes:
        messages: As ``/api/chat`` takes them, in order.
        num_predict: Most tokens to generate; None = until the model ends.
        options: Further Ollama options.
    """

    messages: tuple[Mapping[str, Any], ...]
    num_predict: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise SettingsError(
                "a prompt needs at least one message; without any, Ollama only loads the model"
            )
        if self.num_predict is not None and self.num_predict < 1:
            raise SettingsError(f"num_predict must be 1 or more, got {self.num_predict!r}")
        if "num_predict" in self.options:
            raise SettingsError("give num_predict by itself, not among the options")


def text_prompt(text: str, *, num_predict: int | None = None, **options: Any) -> Prompt:
    """Return a prompt of one user message."""
    return Prompt(messages=({"role": "user", "content": text},), num_predict=num_predict, options=options)


def draw_prompt(rng: random.Random, *, prompt_tokens: int, num_predict: int) -> Prompt:
    """Return a prompt of about this many tokens whose answer reaches ``num_predict``.

    It asks for a long story about words drawn at random, at temperature 0. Equal seeds draw equal
    prompts; two prompts of one length differ in their words, not in their number of tokens.

    Args:
        rng: Draws the words.
        prompt_tokens: Length with template and nonce, as the server counts it; at least about 64.
        num_predict: Tokens to generate.
    """
    words = " ".join(rng.choice(WORDS) for _ in range(max(4, prompt_tokens - OVERHEAD_TOKENS)))
    return text_prompt(f"Words: {words}.\n{_TASK}", num_predict=num_predict, temperature=0.0)


def draw_prompts(rng: random.Random, count: int, *, prompt_tokens: int, num_predict: int) -> list[Prompt]:
    """Return several prompts, each drawn like ``draw_prompt``."""
    return [draw_prompt(rng, prompt_tokens=prompt_tokens, num_predict=num_predict) for _ in range(count)]


def with_nonce(prompt: Prompt, rng: random.Random) -> Prompt:
    """Return the prompt with a nonce before everything that another request could share.

    Nine digits: tokenisers cut digits into fixed groups, so every nonce costs equally many tokens and
    the arms of a comparison stay equally long.

    Args:
        prompt: Without a nonce; a second one would be put before the first.
        rng: Seeded freshly for each run, not with the experiment's seed: a server remembers the
            prompts of the run before.
    """
    nonce = f"{rng.randrange(10**9):09d}"
    first, *rest = prompt.messages
    if first["role"] == "system":
        opened = [{**first, "content": f"{nonce}\n{first['content']}"}, *rest]
    else:
        opened = [{"role": "system", "content": f"{nonce}\n{_SYSTEM}"}, first, *rest]
    return replace(prompt, messages=tuple(opened))


def with_nonces(prompts: Iterable[Prompt], rng: random.Random) -> list[Prompt]:
    """Return the same prompts with new nonces: one visit of a comparison's block."""
    return [with_nonce(prompt, rng) for prompt in prompts]


def chat_body(
    prompt: Prompt, model: str, *, stream: bool = True, keep_alive: float | str | None = None
) -> dict[str, Any]:
    """Return the body of ``POST /api/chat``.

    Args:
        prompt: What to say.
        model: Name of the model.
        stream: Whether lines are wanted as they are made.
        keep_alive: Seconds or a Go duration; None leaves the model's keep-alive as it is.
    """
    return {"model": model, "messages": list(prompt.messages)} | _common(prompt, stream, keep_alive)


def generate_body(
    prompt: Prompt, model: str, *, stream: bool = True, keep_alive: float | str | None = None
) -> dict[str, Any]:
    """Return the body of ``POST /api/generate``: one user message, with or without a system message.

    Raises:
        SettingsError: The prompt is a longer conversation, which only ``/api/chat`` can carry.
    """
    roles = [message["role"] for message in prompt.messages]
    if roles not in (["user"], ["system", "user"]):
        raise SettingsError(
            f"/api/generate takes one user message, got {', '.join(roles)}; use /api/chat for a conversation"
        )
    user = prompt.messages[-1]
    body: dict[str, Any] = {"model": model, "prompt": user["content"]}
    if len(roles) == 2:
        body["system"] = prompt.messages[0]["content"]
    if user.get("images"):
        body["images"] = user["images"]
    return body | _common(prompt, stream, keep_alive)


def _common(prompt: Prompt, stream: bool, keep_alive: float | str | None) -> dict[str, Any]:
    options = dict(prompt.options)
    if prompt.num_predict is not None:
        options["num_predict"] = prompt.num_predict
    fields: dict[str, Any] = {"stream": stream, "options": options}
    if keep_alive is not None:
        fields["keep_alive"] = keep_alive
    return fields


def inference_request(path: str, body: Mapping[str, Any]) -> Request:
    """Return a body as a request ready to send.

    Args:
        path: "/api/chat" or "/api/generate".
        body: From ``chat_body`` or ``generate_body``.
    """
    headers = {"Content-Type": "application/json"}
    return Request(method="POST", path=path, headers=headers, body=msgspec.json.encode(body))


class _Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    images: list[str] = []


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    messages: list[_Message] | None = None
    num_predict: int | None = None
    options: dict[str, Any] = {}


def parse_prompts(lines: Sequence[str | bytes], *, source: str) -> list[Prompt]:
    """Return the prompts of a JSON Lines file, in order.

    Each line is ``{"prompt": "text"}`` or ``{"messages": [{"role": ..., "content": ...}, ...]}``,
    with ``num_predict`` and ``options`` where wanted. Empty lines are left out.

    Args:
        lines: Of the file.
        source: Its name, for messages.

    Raises:
        SettingsError: A line is not such an object (with its number), or there is none at all.
    """
    prompts = [
        _parse_line(line, f"{source} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise SettingsError(f'{source} holds no prompts; write one {{"prompt": "..."}} per line')
    return prompts


def _parse_line(line: str | bytes, where: str) -> Prompt:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{where}: {exc}") from exc
    if (read.prompt is None) == (read.messages is None):
        raise SettingsError(f'{where}: write either "prompt" or "messages"')
    messages = read.messages
    if messages is None:
        messages = [_Message(role="user", content=read.prompt or "")]
    try:
        return Prompt(
            messages=tuple(msgspec.to_builtins(messages)),
            num_predict=read.num_predict,
            options=read.options,
        )
    except SettingsError as exc:
        raise SettingsError(f"{where}: {exc}") from exc
