"""Which models a batch needs, on which targets, and how large they may be. Starts nothing, asks nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ollamalab.runner.plan import Task

_MODEL = re.compile(r"(.+_)?models?")
_TARGETS = ("target", "targets", "reference")

_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])")
_UNITS = {"m": 1e6, "b": 1e9}
#: Bytes per weight, the first that a name contains; the last is Q4_K_M, which Ollama's bare tags mean.
_WEIGHT_BYTES = (("f16", 2.0), ("q8_0", 1.06), ("q6_k", 0.82), ("q5_k", 0.71), ("q4_0", 0.58), ("", 0.62))


@dataclass(frozen=True, kw_only=True, order=True)
class Need:
    """One model on one target.

    Attributes:
        target: "embedded", "ollama" or a URL.
        model: Its name.
    """

    target: str
    model: str


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """How large a model is.

    Attributes:
        parameters: Its weights.
        size_bytes: Of its file.
    """

    parameters: float
    size_bytes: float


def needs_of(tasks: Iterable[Task]) -> list[Need]:
    """Return what a batch needs, each once, sorted.

    By the names of parameters: ``model``, ``models`` and ``*_model`` hold models, ``target`` and
    ``reference`` where they have to be.
    """
    found = set()
    for task in tasks:
        models = [model for name in task.parameters if _MODEL.fullmatch(name) for model in _texts(task, name)]
        targets = [target for name in _TARGETS for target in _texts(task, name)]
        found |= {Need(target=target, model=model) for target in targets for model in models}
    return sorted(found)


def largest_model(parameters: Mapping[str, Any], known_bytes: Mapping[str, float]) -> ModelSize | None:
    """Return the size of the largest model among a notebook's parameters; None if none tells.

    Args:
        parameters: Of the notebook.
        known_bytes: Sizes of files that are there, by the model's name; others are taken from the name.
    """
    names = [
        model
        for name, value in parameters.items()
        if _MODEL.fullmatch(name)
        for model in ([value] if isinstance(value, str) else value)
    ]
    sizes = [size for name in names if (size := model_size(name, known_bytes.get(name)))]
    return max(sizes, key=lambda size: size.size_bytes, default=None)


def model_size(name: str, known_bytes: float | None = None) -> ModelSize | None:
    """Return the size of a model as its name tells it; None if it does not.

    ``qwen2.5:7b`` has 7e9 weights of 4.9 bits, the mean of Q4_K_M; ``:7b-instruct-q8_0`` has 8.5 bits.

    Args:
        name: Such as "qwen2.5:7b".
        known_bytes: Size of its file, if it is there.
    """
    tag = name.lower().rpartition(":")[2]
    weight_bytes = next(size for word, size in _WEIGHT_BYTES if word in tag)
    if found := _SIZE.search(tag):
        parameters = float(found[1]) * _UNITS[found[2]]
    elif known_bytes is not None:
        parameters = known_bytes / weight_bytes
    else:
        return None
    return ModelSize(
        parameters=parameters,
        size_bytes=parameters * weight_bytes if known_bytes is None else known_bytes,
    )


def _texts(task: Task, name: str) -> list[str]:
    """Return a parameter's texts, whether it holds one or a list; none if it is empty or absent."""
    value = task.parameters.get(name, "")
    return [text for text in ([value] if isinstance(value, str) else value) if text]
