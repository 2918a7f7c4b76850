"""How models are kept warm by ``serve``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ollamalab.errors import OutOfRange
from ollamalab.protocol.names import parse_name

WARM_KEEPS = ("off", "auto")

_MAX_HOLD_COST = 1000.0


@dataclass(frozen=True, kw_only=True)
class WarmupSettings:
    """Which models are loaded before anybody asks, and whether those in use are kept.

    ``hold_cost`` is what a second of a model's memory costs, in seconds of a user's waiting. With the
    default of 1/100, holding a model for Ollama's own 5 minutes costs as much as 3 s of waiting: a model
    that loads in 30 s is held so long if a request comes in one case of ten, one that loads in 1 s never.
    """

    models: tuple[str, ...] = ()  #: loaded when the gateway starts, and again when a server comes back
    keep: Literal["off", "auto"] = "off"  #: auto renews and loads again what is likely to be used
    hold_cost: float = 0.01  #: seconds of waiting that are worth a second of holding a model; 0 holds all

    def __post_init__(self) -> None:
        for model in self.models:
            parse_name(model)
        if self.keep not in WARM_KEEPS:
            raise OutOfRange("keep", f"must be {' or '.join(WARM_KEEPS)}, got {self.keep!r}")
        if not 0 <= self.hold_cost <= _MAX_HOLD_COST:
            raise OutOfRange("hold_cost", f"must be 0 to {_MAX_HOLD_COST:g}, got {self.hold_cost!r}")

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.models) or self.keep == "auto"
