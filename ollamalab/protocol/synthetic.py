"""The mark of models with random weights, and how it is shown beside their names.

Such a model has the layers of a real one, so its load times, memory and speed are real; its text is
noise. Wherever a figure of it is shown, its name must say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Metadata key that is true in such files; Ollama keeps it when a model is created from one.
SYNTHETIC_FIELD = "ollamalab.synthetic"

_WORD = "synthetic"


def is_synthetic(shown: Mapping[str, Any]) -> bool:
    """Whether a reply of ``/api/show`` is about a model with random weights."""
    info = shown.get("model_info")
    return isinstance(info, Mapping) and info.get(SYNTHETIC_FIELD) is True


def mark_synthetic(name: str) -> str:
    """Return a model's name with the mark: "qwen2.5:7b (synthetic)"; unchanged if it says so itself."""
    return name if _WORD in name.lower() else f"{name} ({_WORD})"


def mark_mentions(text: str, synthetic: Iterable[str]) -> str:
    """Return a text in which every mention of a model with random weights has the mark.

    Args:
        text: Such as a table's title.
        synthetic: Names of those models.
    """
    for name in sorted(synthetic, key=len, reverse=True):
        # Not inside a longer name ("7b" in "7b-q8_0"), and not twice.
        mention = rf"(?<![\w.:/-]){re.escape(name)}(?![\w/-]|[.:]\w| \({_WORD}\))"
        text = re.sub(mention, lambda found: mark_synthetic(found.group()), text)
    return text
