"""What a server says of itself, read from its answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollamalab.hosts.slots import decoded_tokens
from ollamalab.protocol.loaded import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerState:
    """What is known of a server; None where its kind does not tell.

    Attributes:
        url: Where it is asked.
        kind: "Ollama", "gateway", "embedded server"; "" before it first answered.
        version: Of its own account.
        models: In memory, as ``/api/ps`` lists them.
        slots: Places for requests.
        busy: Of these, in use.
        waiting: Requests that wait for one.
        tokens_per_s: Output, of all requests together where slots tell their tokens; of a gateway, which
            does not count them, the latest speed of one answer of its fastest model.
        tokens_are_of_one: Whether that is the speed of one answer.
        trouble: Why it did not answer the last time; None if it did.
    """

    url: str
    kind: str = ""
    version: str = ""
    models: tuple[LoadedModel, ...] = ()
    slots: int | None = None
    busy: int | None = None
    waiting: int | None = None
    tokens_per_s: float | None = None
    tokens_are_of_one: bool = False
    trouble: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What slots or queue tell; the fields are those of ``ServerState``."""

    slots: int | None = None
    busy: int | None = None
    waiting: int | None = None
    tokens_per_s: float | None = None
    tokens_are_of_one: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLook:
    """The engines' slots at one moment.

    Attributes:
        at_s: When.
        tokens: Engine, slot and task to the tokens it has generated.
    """

    at_s: float
    tokens: Mapping[tuple[str, Any, Any], int]


def look_at_slots(engines: Sequence[Mapping[str, Any]], at_s: float) -> tuple[Load, SlotLook]:
    """Return what the engines of an embedded server tell (``GET /lab/engines``), without a rate.

    Args:
        engines: Each with its ``model`` and ``slots`` as llama.cpp tells them.
        at_s: When.
    """
    all_slots = [(engine["model"], slot) for engine in engines for slot in engine["slots"]]
    busy = [(model, slot) for model, slot in all_slots if slot["is_processing"]]
    tokens = {
        (model, slot["id"], slot.get("id_task")): decoded
        for model, slot in busy
        if (decoded := decoded_tokens(slot)) is not None
    }
    return Load(slots=len(all_slots), busy=len(busy)), SlotLook(at_s=at_s, tokens=tokens)


def tokens_per_s(before: SlotLook | None, after: SlotLook) -> float | None:
    """Return the tokens that were generated between two looks, by the second.

    Of a task that began in between all its tokens count; what one that ended generated after the first
    look is not seen, so that the rate is a lower bound.
    """
    if before is None or after.at_s <= before.at_s:
        return None
    made = sum(max(0, count - before.tokens.get(task, 0)) for task, count in after.tokens.items())
    return made / (after.at_s - before.at_s)


def load_of_gateway(status: Mapping[str, Any]) -> Load:
    """Return what a gateway tells of its queue (``GET /lab/status``).

    Raises:
        KeyError, TypeError, AttributeError: It is not such a page.
    """
    queue = status["queue"]
    speeds = [
        replica["tokens_per_s"]
        for upstream in status["upstreams"]
        for replica in upstream["models"].values()
        if replica.get("tokens_per_s") is not None
    ]
    limits = queue["limits"]
    return Load(
        slots=sum(limits.values()) if limits else None,
        busy=queue["active"],
        waiting=queue["waiting"],
        tokens_per_s=max(speeds, default=None),
        tokens_are_of_one=True,
    )
