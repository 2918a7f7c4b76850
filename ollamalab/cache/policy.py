"""Whether a call may be answered from the cache, and its answer kept. Pure.

Source of ``Cache-Control``: RFC 9111 §5.2.1, the directives of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from ollamalab.errors import RequestRefused, SettingsError
from ollamalab.protocol.calls import Call
from ollamalab.protocol.durations import parse_keep_alive_s


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheControl:
    """What a request says about caching.

    Attributes:
        no_cache: Ask the upstream, whatever is kept; keep its answer.
        no_store: Ask the upstream, and keep nothing.
        max_age_s: An older answer will not do; None = any that is fresh.
        only_if_cached: Ask the upstream for nothing.
    """

    no_cache: bool = False
    no_store: bool = False
    max_age_s: float | None = None
    only_if_cached: bool = False


_SAYS_NOTHING = CacheControl()

_GATEWAY_TIMEOUT = 504
_NOT_CACHED = "the answer is not in the cache, and Cache-Control: only-if-cached forbids to ask for it"


def parse_cache_control(text: str) -> CacheControl:
    """Return what a ``Cache-Control`` header asks; what it does not know or cannot read is ignored.

    Args:
        text: The header's value; "" without one. Of several ``max-age`` the strictest counts.
    """
    if not text:
        return _SAYS_NOTHING
    directives = [part.partition("=") for part in text.lower().split(",")]
    names = {name.strip() for name, _, _ in directives}
    ages = [value.strip().strip('"') for name, _, value in directives if name.strip() == "max-age"]
    seconds = [float(age) for age in ages if age.isascii() and age.isdigit()]
    return CacheControl(
        no_cache="no-cache" in names,
        no_store="no-store" in names,
        max_age_s=min(seconds, default=None),
        only_if_cached="only-if-cached" in names,
    )


def refuse_if_only_cached(call: Call) -> None:
    """Refuse a call that wants a kept answer or none, where none can be had; others pass.

    Raises:
        RequestRefused: 504.
    """
    if call.endpoint.names_model and parse_cache_control(call.cache_control).only_if_cached:
        raise RequestRefused(_GATEWAY_TIMEOUT, _NOT_CACHED)


def may_cache(call: Call, policy: str) -> bool:
    """Return whether a call's answer is the same question's answer the next time.

    Left out are requests that only load or unload a model, those whose fields outside the key are
    wrong, which the upstream has to refuse, and under "deterministic" those that sample at random.

    Args:
        call: Any call.
        policy: "all" or "deterministic".
    """
    if not call.endpoint.is_cached or not call.model_key:
        return False
    fields = call.fields
    question = fields.get("messages" if call.endpoint.path.startswith(_CHATS) else "prompt")
    if not question or not _are_side_fields_sound(call):
        return False
    return policy == "all" or is_deterministic(call)


def is_deterministic(call: Call) -> bool:
    """Return whether the request itself asks for the same answer each time: temperature 0 or a seed.

    A model's own parameters may do the same, but the request does not show it. A negative seed is
    another one each time; under ``/v1`` as well.
    """
    source: Mapping[str, Any] = call.fields if call.endpoint.is_openai else call.options
    temperature, seed = source.get("temperature"), source.get("seed")
    is_greedy = _is_number(temperature) and temperature == 0
    return is_greedy or (_is_number(seed) and seed >= 0)


_CHATS = ("/api/chat", "/v1/chat/")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_side_fields_sound(call: Call) -> bool:
    fields = call.fields
    if call.endpoint.is_openai:
        options = fields.get("stream_options")
        if options is None:
            return True
        return isinstance(options, dict) and isinstance(options.get("include_usage", False), bool)
    if "keep_alive" in fields:
        try:
            parse_keep_alive_s(fields["keep_alive"])
        except SettingsError:
            return False
    return True
