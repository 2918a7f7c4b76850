"""Who waits for a place at an upstream, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ollamalab.errors import OutOfRange

#: More is beyond any Ollama: each place at once costs its model a whole context of memory.
MOST_CONCURRENT = 1024


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """How many requests a model works on at once, and what becomes of the others."""

    max_concurrent: int | None = None  #: per upstream and model; None = learns what the server can use
    max_queue: int = 100  #: requests that may wait, over all models; more are refused at once
    queue_timeout_s: float = 60.0  #: a request that has waited so long is refused
    share_ratio: float = 0.5  #: of the queue that one client may fill while others wait
    ageing_s: float = 5.0  #: waiting so long is worth one step of priority

    def __post_init__(self) -> None:
        if self.max_concurrent is not None and not 1 <= self.max_concurrent <= MOST_CONCURRENT:
            raise OutOfRange("max_concurrent", f"must be 1 to {MOST_CONCURRENT}, got {self.max_concurrent!r}")
        if self.max_queue < 0:
            raise OutOfRange("max_queue", f"must be 0 or more, got {self.max_queue!r}")
        for name in ("queue_timeout_s", "ageing_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise OutOfRange(name, f"must be > 0 and finite, got {getattr(self, name)!r}")
        if not 0 < self.share_ratio <= 1:
            raise OutOfRange("share_ratio", f"must be above 0 and at most 1, got {self.share_ratio!r}")

    @property
    def share(self) -> int:
        """Requests of one client that may wait while others wait too; at least 1."""
        return max(1, round(self.max_queue * self.share_ratio))
