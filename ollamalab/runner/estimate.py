"""How long a notebook will take: a declared sum over its parameters, with assumed speeds of the host.

A notebook says in its metadata what its default run took (``minutes``) and how its time grows
(``estimate_s``), as a sum over its parameters and three quantities that depend on host and model:

- ``load_s``: one load of its largest model;
- ``request_s``: one request of ``prompt_tokens`` and ``num_predict`` tokens, alone;
- ``batch``: how many times the tokens/s of one request many at once get.

The speeds behind them are assumptions about a host nobody has measured yet, good to a factor of about two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ollamalab.runner.expressions import evaluate
from ollamalab.runner.needs import ModelSize, largest_model
from ollamalab.runner.plan import Plan, Task

#: Who says so: a default run that was measured, or a sum over the parameters.
Basis = Literal["measured", "estimated"]


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Assumed speeds of a host.

    Attributes:
        start_s: From the start of an engine until it reads the model.
        load_bytes_per_s: Reading a model file.
        decode_bytes_per_s: Weights read while decoding: each token of one request reads all of them.
        prefill_flops: Operations/s on a prompt; a token takes two per weight.
        batch: Tokens/s of many requests at once, in those of one.
    """

    start_s: float
    load_bytes_per_s: float
    decode_bytes_per_s: float
    prefill_flops: float
    batch: float


#: Two cores without a GPU, as SmolLM2-135M runs there: 120 tokens/s, 180 with 8 slots, 300 prompt tokens/s.
CPU = Speeds(start_s=0.5, load_bytes_per_s=1e9, decode_bytes_per_s=12e9, prefill_flops=8e10, batch=1.5)
#: A GPU of some 1 TB/s of which half is used, and an NVMe disk.
GPU = Speeds(start_s=2.0, load_bytes_per_s=1e9, decode_bytes_per_s=5e11, prefill_flops=4e13, batch=8.0)

#: Taken for a model whose name tells no size.
_USUAL = ModelSize(parameters=7e9, size_bytes=4.3e9)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long something takes.

    Attributes:
        seconds: So long; None if nobody says.
        basis: Who says so.
    """

    seconds: float | None
    basis: Basis


def estimate(task: Task, known_bytes: Mapping[str, float]) -> Estimate:
    """Return how long a notebook takes.

    With its defaults what was measured then; with others its own sum, or None if it declares none.

    Args:
        task: The notebook with its parameters.
        known_bytes: Sizes of model files that are there, by name.

    Raises:
        SettingsError: The declared sum is wrong.
    """
    header = task.notebook.header
    if not task.changed:
        return Estimate(seconds=header.minutes and header.minutes * 60.0, basis="measured")
    if not header.estimate_s:
        return Estimate(seconds=None, basis="estimated")
    names = task.parameters | quantities(task.parameters, known_bytes)
    where = f"{task.notebook.path.name}, metadata ollamalab.estimate_s"
    return Estimate(seconds=evaluate(header.estimate_s, names, where), basis="estimated")


def total(plan: Plan, known_bytes: Mapping[str, float]) -> Estimate:
    """Return how long a batch takes; None if one of its notebooks does not say."""
    parts = [estimate(task, known_bytes) for task in plan.tasks]
    seconds = [part.seconds for part in parts if part.seconds is not None]
    is_measured = all(part.basis == "measured" for part in parts)
    return Estimate(
        seconds=sum(seconds) if len(seconds) == len(parts) else None,
        basis="measured" if is_measured else "estimated",
    )


def quantities(parameters: Mapping[str, Any], known_bytes: Mapping[str, float]) -> dict[str, float]:
    """Return what a declared sum may use beside its parameters.

    Args:
        parameters: Of the notebook; its target says whose speeds are assumed.
        known_bytes: Sizes of model files that are there, by name.
    """
    speeds = CPU if parameters.get("target", "embedded") == "embedded" else GPU
    size = largest_model(parameters, known_bytes) or _USUAL
    prompt_s = parameters.get("prompt_tokens", 0) * 2 * size.parameters / speeds.prefill_flops
    answer_s = parameters.get("num_predict", 0) * size.size_bytes / speeds.decode_bytes_per_s
    return {
        "load_s": speeds.start_s + size.size_bytes / speeds.load_bytes_per_s,
        "request_s": prompt_s + answer_s,
        "batch": speeds.batch,
    }
