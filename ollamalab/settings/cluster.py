"""How several upstreams are watched, and how far a request may move among them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ollamalab.errors import OutOfRange


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How often upstreams are looked at, and how many of them a request may try."""

    probe_interval_s: float = 2.0  #: between two looks at an upstream, give or take a fifth
    probe_timeout_s: float = 2.0  #: one that takes longer to say its version does not answer
    list_interval_s: float = 5.0  #: between two looks at its models, while there are requests
    max_attempts: int = 3  #: upstreams that one request may be sent to

    def __post_init__(self) -> None:
        for name in ("probe_interval_s", "probe_timeout_s", "list_interval_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise OutOfRange(name, f"must be > 0 and finite, got {getattr(self, name)!r}")
        if self.max_attempts < 1:
            raise OutOfRange("max_attempts", f"must be 1 or more, got {self.max_attempts!r}")
