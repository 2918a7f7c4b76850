"""Who may take a request, and whom a decision looks at: a thousand cost no more than some dozens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ollamalab.routing.views import UpstreamView

#: A decision looks at so many at most: the best of 48 drawn is nearly always among the best 6 %.
MOST_LOOKED_AT = 48


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Upstreams that may take requests for one model.

    Attributes:
        members: All of them, at least one, in a fixed order; the same object as long as they are the same,
            also for other models, so that policies know their turns by it.
        resident: Those of them that have the model loaded; whoever made it keeps it current.
    """

    members: Sequence[UpstreamView]
    resident: Sequence[UpstreamView] = ()
    _by_name: dict[str, UpstreamView] = field(default_factory=dict)

    @staticmethod
    def among(members: Iterable[UpstreamView], model_key: str) -> Candidates:
        """Return the candidates of a model, as the views say now where it is loaded."""
        everyone = tuple(members)
        views = ((member, member.models.get(model_key)) for member in everyone)
        return Candidates(everyone, tuple(member for member, view in views if view and view.is_resident))

    def named(self, names: Iterable[str]) -> list[UpstreamView]:
        """Return the members of these names; other names are left out."""
        if not self._by_name:
            self._by_name.update((member.name, member) for member in self.members)
        return [self._by_name[name] for name in names if name in self._by_name]

    def shortlist(self, rng: random.Random) -> Sequence[UpstreamView]:
        """Return whom to look at, in an order that favours none.

        Of many, half are drawn from those that have the model loaded, so that a single one among a
        thousand is seen; who is drawn twice is looked at twice.

        Args:
            rng: Draws where to begin, or who is looked at.
        """
        count = len(self.members)
        if count <= MOST_LOOKED_AT:
            start = int(rng.random() * count)
            return (*self.members[start:], *self.members[:start])
        half = MOST_LOOKED_AT // 2
        is_few = len(self.resident) <= half
        near = list(self.resident) if is_few else rng.choices(self.resident, k=half)
        return near + rng.choices(self.members, k=MOST_LOOKED_AT - len(near))
