"""Where the embedded server answers otherwise than Ollama, by name of the case, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

_EMBEDS = "a chat model embeds, reloaded with mean pooling: one small model serves every experiment (ADR 3)"
_ALLOW = "a preflight answer has no Allow header, which no browser reads"

DIFFERENCES: Mapping[str, str] = {
    "preflight from localhost": _ALLOW,
    "preflight from elsewhere": _ALLOW,
    "generate, render only": "_debug_render_only is a hook for Ollama's own tests, and is ignored",
    "the_list_after_an_engine_died": "a model whose engine is dead is not in memory, so it is not listed",
    "embed, a chat model": _EMBEDS,
    "embeddings, a chat model": _EMBEDS,
    "v1 embeddings, a chat model": _EMBEDS,
}
