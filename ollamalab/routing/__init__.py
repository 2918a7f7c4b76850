"""Which upstream takes a request, given what is known of each. Pure.

Every policy is a small object with ``choose(want, candidates)``. Randomness is passed in; time is not
needed, since bookings say what is under way.
"""

from ollamalab.routing.candidates import Candidates
from ollamalab.routing.policies import (
    POLICIES,
    LeastInFlight,
    ModelAware,
    Policy,
    Predicted,
    make_policy,
)
from ollamalab.routing.prefixes import PrefixAffinity, PrefixIndex
from ollamalab.routing.views import ModelView, UpstreamView, Want
from ollamalab.routing.weights import RoundRobin, Weighted

__all__ = [
    "POLICIES",
    "Candidates",
    "LeastInFlight",
    "ModelAware",
    "ModelView",
    "Policy",
    "Predicted",
    "PrefixAffinity",
    "PrefixIndex",
    "RoundRobin",
    "UpstreamView",
    "Want",
    "Weighted",
    "make_policy",
]
