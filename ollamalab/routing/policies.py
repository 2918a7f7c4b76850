"""The policies that look at load, residency and speed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from statistics import fmean
from types import MappingProxyType
from typing import Protocol

from ollamalab.errors import SettingsError
from ollamalab.routing.candidates import Candidates
from ollamalab.routing.prefixes import PrefixAffinity
from ollamalab.routing.views import ModelView, UpstreamView, Want
from ollamalab.routing.weights import RoundRobin, Weighted

#: Seconds that a load is taken to last before one has been seen anywhere.
UNSEEN_LOAD_S = 10.0


class Policy(Protocol):
    """Decides which upstream takes a request."""

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return one of the members.

        Args:
            want: What the request needs.
            candidates: Who may be chosen; the same object until something changes.
        """
        ...


class LeastInFlight:
    """The fewest requests under way for its weight; among equals, any.

    Args:
        rng: Draws among equals and, of very many members, those that are looked at.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return the least loaded member."""
        del want
        return min(candidates.shortlist(self._rng), key=_load)


class ModelAware:
    """Resident with a free slot before resident and busy before on disk; then the least loaded.

    On disk, the upstream with the fewest models in memory goes first: a load there evicts nobody.

    Args:
        rng: As for ``LeastInFlight``.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return the member that has the model at hand."""
        key = want.model_key

        def rank(member: UpstreamView) -> tuple[int, float, float]:
            model = member.models.get(key)
            # A load that is under way counts as resident: joining it costs no second load.
            if model is None or not (model.is_resident or model.in_flight):
                resident = sum(other.is_resident or other.in_flight > 0 for other in member.models.values())
                return 2, resident, _load(member)
            if model.is_resident and model.in_flight < model.slots:
                return 0, _load(member), 0.0
            return 1, model.in_flight / model.slots, _load(member)

        return min(candidates.shortlist(self._rng), key=rank)


class Predicted:
    """Who will finish first: seconds of load, of the tokens ahead, and of its own.

    Before anything has been measured of a model, the least loaded.

    Args:
        rng: As for ``LeastInFlight``.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return the member that is expected to finish first."""
        key = want.model_key
        listed = candidates.shortlist(self._rng)
        models = [(member, member.models.get(key) or _UNKNOWN) for member in listed]
        speeds = [model.tokens_per_s for _, model in models if model.tokens_per_s]
        if not speeds:
            return min(listed, key=_load)
        loads = [model.load_s for _, model in models if model.load_s is not None]
        usual_speed = fmean(speeds)
        usual_load_s = fmean(loads) if loads else UNSEEN_LOAD_S

        def rank(entry: tuple[UpstreamView, ModelView]) -> tuple[float, float]:
            member, model = entry
            seconds = expected_s(model, want.tokens, usual_speed=usual_speed, usual_load_s=usual_load_s)
            return seconds, _load(member)

        return min(models, key=rank)[0]


def expected_s(model: ModelView, tokens: float, *, usual_speed: float, usual_load_s: float) -> float:
    """Return the seconds until a request given to this model now would be finished.

    Args:
        model: The model on one upstream.
        tokens: That the request will generate.
        usual_speed: Tokens per second and stream to assume where none was measured.
        usual_load_s: Load time to assume where none was measured.
    """
    speed = model.tokens_per_s or usual_speed
    is_there = model.is_resident or model.in_flight > 0
    load_s = 0.0 if is_there else model.load_s if model.load_s is not None else usual_load_s
    wait_s = model.booked_tokens / (speed * model.slots) if model.in_flight >= model.slots else 0.0
    return load_s + wait_s + tokens / speed


_UNKNOWN = ModelView()


def _load(member: UpstreamView) -> float:
    return member.in_flight / member.weight


POLICIES: Mapping[str, Callable[[random.Random], Policy]] = MappingProxyType(
    {
        "round-robin": lambda _rng: RoundRobin(),
        "weighted": lambda _rng: Weighted(),
        "least-inflight": LeastInFlight,
        "model-aware": ModelAware,
        "prefix": PrefixAffinity,
        "predicted": Predicted,
    }
)


def make_policy(name: str, rng: random.Random) -> Policy:
    """Return a new policy.

    Args:
        name: One of ``POLICIES``.
        rng: For those that draw.

    Raises:
        SettingsError: There is no such policy.
    """
    if name not in POLICIES:
        raise SettingsError(f"route must be one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name](rng)
