"""What the response cache keeps, for how long, and how it gives it back."""

from __future__ import annotations

from dataclasses import dataclass

from ollamalab.errors import OutOfRange

CACHE_POLICIES = ("all", "deterministic")
PACINGS = ("instant", "recorded")


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Settings of the response cache; policy, time and number by default those of the sources."""

    policy: str = "all"  #: "all" complete answers, or only "deterministic" ones: temperature 0 or a seed
    ttl_s: float = 300.0  #: an answer is fresh for so long
    max_entries: int = 100  #: answers kept at once
    max_bytes: int = 256 * 1024 * 1024  #: memory (or disk) they may take
    max_answer_bytes: int = 8 * 1024 * 1024  #: a longer answer passes through and is not kept
    stale_if_error_s: float = 3600.0  #: after ttl_s, still served if the upstream fails; 0 = never
    pacing: str = "instant"  #: replayed streams come at once, or "recorded": as their lines came

    def __post_init__(self) -> None:
        if self.policy not in CACHE_POLICIES:
            raise OutOfRange("policy", f"must be one of {', '.join(CACHE_POLICIES)}, got {self.policy!r}")
        if self.pacing not in PACINGS:
            raise OutOfRange("pacing", f"must be one of {', '.join(PACINGS)}, got {self.pacing!r}")
        if not 0 < self.ttl_s < float("inf"):
            raise OutOfRange("ttl_s", f"must be > 0 and finite, got {self.ttl_s!r}")
        if not 0 <= self.stale_if_error_s < float("inf"):
            raise OutOfRange(
                "stale_if_error_s", f"must be 0 or more and finite, got {self.stale_if_error_s!r}"
            )
        for name in ("max_entries", "max_bytes", "max_answer_bytes"):
            if getattr(self, name) < 1:
                raise OutOfRange(name, f"must be 1 or more, got {getattr(self, name)!r}")
