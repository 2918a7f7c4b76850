"""How many slots of the engines are busy: reading it, and a sampler of it.

A *slot* is one sequence's place in an engine's batch. It is *busy* from the first prompt token to the
last answer token, and *decoding* once its first answer token is out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ollamalab.errors import UpstreamError
from ollamalab.hosts.web import get_json

Slots = Mapping[str, Sequence[Mapping[str, Any]]]
"""Engine, by its model's name or its pid, to its slots as llama.cpp's ``/slots`` tells them."""

_TIMEOUT_S = 1.0


def embedded_slots(url: str) -> Slots:
    """Return the slots of every engine of an embedded server (``GET /lab/engines``).

    Raises:
        UpstreamError: No such answer.
    """
    engines = get_json(f"{url}/lab/engines", timeout_s=_TIMEOUT_S)
    return {engine["model"]: engine["slots"] for engine in engines}


def llama_server_slots(url: str) -> Sequence[Mapping[str, Any]]:
    """Return the slots of one llama.cpp server (``GET /slots``).

    Raises:
        UpstreamError: No such answer; so while it loads its model.
    """
    slots: Sequence[Mapping[str, Any]] = get_json(f"{url}/slots", timeout_s=_TIMEOUT_S)
    return slots


class SlotSampler:
    """Reads slot occupancy; one source per engine, "slots:smollm2:135m" or "slots:1234".

    ``slots`` is how many there are, ``busy`` and ``decoding`` how many of them are so now; the last is None
    where the engine does not tell. No engine is loaded: no source.
    """

    def __init__(self, slots: Callable[[], Slots]) -> None:
        """Prepare; nothing is asked yet.

        Args:
            slots: Tells the slots now: ``target.slots``, or a function that asks another server.
        """
        self.notes: list[str] = []
        self._slots = slots

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        """Return the occupancy of each engine, now; nothing while the server does not answer.

        Raises:
            SamplerUnavailable: The server has no way of telling.
        """
        try:
            engines = self._slots()
        except UpstreamError as error:
            if str(error) not in self.notes:
                self.notes.append(str(error))
            return {}
        return {f"slots:{engine}": _occupancy(slots) for engine, slots in engines.items()}


def _occupancy(slots: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    busy = [slot for slot in slots if slot["is_processing"]]
    decoded = [decoded_tokens(slot) for slot in busy]
    return {
        "slots": len(slots),
        "busy": len(busy),
        "decoding": None if None in decoded else sum(bool(tokens) for tokens in decoded),
    }


def decoded_tokens(slot: Mapping[str, Any]) -> int | None:
    """Return how many tokens a busy slot has generated; None if the engine does not say."""
    progress = slot.get("next_token")
    # llama.cpp gave one object here before it gave a list of one.
    first = progress[0] if isinstance(progress, list) and progress else progress
    return first.get("n_decoded") if isinstance(first, dict) else None
