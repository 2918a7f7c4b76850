"""The ``options`` of a request: names, types and defaults of Ollama's table.

Load-time options decide how a model is loaded, so another value costs a reload; all others belong
to one request. Unknown names are ignored, as are names that older versions knew (``mirostat``,
``numa``, ``low_vram`` ...); a known name with the wrong type is refused.

Source: Ollama's ``api/types.go`` (v0.33).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ollamalab.errors import SettingsError

#: A model never has fewer tokens of context than this.
MIN_CONTEXT_TOKENS = 4

#: An open-ended answer ends after this many context windows.
OPEN_ENDED_CONTEXTS = 10

#: Options that decide how a model is loaded; ``shift`` is one too, beside them in the body.
LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a request asks of the engine; the defaults are Ollama's.

    Attributes:
        num_ctx: Load-time. Tokens of context per slot; None = the server's choice.
        num_batch: Load-time. Prompt tokens evaluated together; None = the server's choice.
        num_gpu: Load-time. Layers on the GPU; -1 = the engine's choice, 0 = none.
        main_gpu: Load-time. GPU for a model that is not split; None = the engine's choice.
        use_mmap: Load-time. Map the file instead of reading it; None = the engine's choice.
        num_thread: Load-time. Threads of the engine; 0 = the engine's choice.
        draft_num_predict: Load-time. Tokens a draft model proposes; None = its default.
        num_keep: Prompt tokens that stay when the context shifts; -1 = all.
        seed: Negative = another one each time.
        num_predict: Most tokens to generate; negative = until the model ends.
        top_k: Candidates kept by rank.
        top_p: Candidates kept by cumulative probability, 0-1.
        min_p: Candidates kept by probability relative to the best, 0-1.
        typical_p: Locally typical sampling, 0-1; 1 is off.
        repeat_last_n: Tokens looked back for the repeat penalty.
        temperature: 0 takes the likeliest token.
        repeat_penalty: 1 is off.
        presence_penalty: 0 is off.
        frequency_penalty: 0 is off.
        stop: Texts that end an answer.
    """

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int | None = None
    num_keep: int = 4
    seed: int = -1
    num_predict: int = -1
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    temperature: float = 0.8
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()


def parse_options(raw: Mapping[str, Any]) -> Options:
    """Return the options of a request; what it leaves out or sets to null has its default.

    Raises:
        SettingsError: A known option has the wrong type; Ollama's words.
    """
    values = {
        name: _READERS[name](name, value)
        for name, value in raw.items()
        if name in _READERS and value is not None
    }
    return Options(**values)


def load_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a request that decide how a model is loaded, as they were sent."""
    return {name: raw[name] for name in LOAD_OPTIONS if raw.get(name) is not None}


def context_tokens(options: Options, *, default_tokens: int, trained_tokens: int | None) -> int:
    """Return the tokens of context that each slot really gets.

    Args:
        options: Of the request; ``num_ctx`` wins over the default.
        default_tokens: The server's choice.
        trained_tokens: What the model was trained for, which nothing exceeds; None = unknown.
    """
    wanted = default_tokens if options.num_ctx is None else options.num_ctx
    capped = wanted if trained_tokens is None else min(wanted, trained_tokens)
    return max(MIN_CONTEXT_TOKENS, capped)


def bounded_num_predict(num_predict: int, num_ctx: int) -> int:
    """Return the most tokens to generate: open-ended and huge values end after ten contexts."""
    limit = OPEN_ENDED_CONTEXTS * num_ctx
    return limit if num_predict < 0 else min(num_predict, limit)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f'option "{name}" must be of type integer')
    return max(-_INT64_MAX, min(int(value), _INT64_MAX))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f'option "{name}" must be of type float32')
    return float(value)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f'option "{name}" must be of type boolean')
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise SettingsError(f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise SettingsError(f'option "{name}" must be of an array of strings')
    return tuple(value)


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "num_ctx": _integer,
    "num_batch": _integer,
    "num_gpu": _integer,
    "main_gpu": _integer,
    "use_mmap": _boolean,
    "num_thread": _integer,
    "draft_num_predict": _integer,
    "num_keep": _integer,
    "seed": _integer,
    "num_predict": _integer,
    "top_k": _integer,
    "top_p": _number,
    "min_p": _number,
    "typical_p": _number,
    "repeat_last_n": _integer,
    "temperature": _number,
    "repeat_penalty": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "stop": _texts,
}
