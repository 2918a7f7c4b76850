"""Model names: ``[host/][namespace/]model[:tag]``, matched without regard to case.

Rules of Ollama's ``types/model/name.go``: default host ``registry.ollama.ai``, default namespace
``library``, default tag ``latest``. Replies echo the client's spelling; lists use the short form
with its tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ollamalab.errors import SettingsError

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A complete model name; ``key`` is what two names are compared by."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> str:
        """Full name in lower case: equal keys name the same model."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}".lower()

    @property
    def short(self) -> str:
        """Shortest form that still names it, always with its tag (``smollm2:135m``)."""
        text = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{text}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{text}"
        return text


def parse_name(text: str) -> ModelName:
    """Return the complete form of a model name.

    Args:
        text: A name as a client sends it: "smollm2", "library/SmolLM2:135m".

    Raises:
        SettingsError: The text is not a model name.
    """
    rest = text.removeprefix("https://").removeprefix("http://")
    head, slash, last = rest.rpartition("/")
    model, colon, tag = last.partition(":")
    parts = head.split("/") if slash else []
    if len(parts) > 2:
        raise SettingsError(
            f"{text!r} is not a model name: too many slashes; write [host/][namespace/]model[:tag]"
        )
    namespace = parts[-1] if parts else DEFAULT_NAMESPACE
    host = parts[0] if len(parts) == 2 else DEFAULT_HOST
    name = ModelName(host, namespace, model, tag if colon else DEFAULT_TAG)
    checks = ((_HOST, host), (_NAMESPACE, namespace), (_MODEL, model), (_TAG, name.tag))
    if not all(pattern.fullmatch(part) for pattern, part in checks):
        raise SettingsError(
            f"{text!r} is not a model name; write [host/][namespace/]model[:tag], for example smollm2:135m"
        )
    return name
