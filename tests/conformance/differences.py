"""Where the embedded server answers otherwise than Ollama, by name of the case, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

_EMBEDS = "a chat model embeds, reloaded with mean pooling: one small model serves every experiment (ADR 3)"
_CHARSET = "an error that comes in place of a stream's first line names the charset, as all others do"
_ALLOW = "a preflight answer has no Allow header, which no browser reads"

DIFFERENCES: Mapping[str, str] = {
    "preflight from localhost": _ALLOW,
    "preflight from elsewhere": _ALLOW,
    "generate, render only": "_debug_render_only is a hook for Ollama's own tests, and is ignored",
    "generate, too long, truncate off": _CHARSET,
    "generate, too long, shift off": _CHARSET,
    "chat, too long": _CHARSET,
    "embed, a chat model": _EMBEDS,
    "embeddings, a chat model": _EMBEDS,
    "v1 embeddings, a chat model": _EMBEDS,
}
