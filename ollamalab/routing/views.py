"""What routing sees: upstreams, the models on them, and what a request wants.

The cluster keeps the views current: it books a request on its upstream at the decision and releases
it on every exit, so a decision needs no answer from the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class ModelView:
    """One model on one upstream.

    Attributes:
        is_resident: Whether it is loaded, as far as is known.
        in_flight: Requests for it that are booked here and not over.
        slots: How many of them really run at once.
        booked_tokens: What they are expected to take, all together: tokens to generate, and for the prompt
            as many as take as long.
        tokens_per_s: Of these, of one stream lately; None before the first answer.
        load_s: What loading it took here, lately; None if never seen.
    """

    is_resident: bool = False
    in_flight: int = 0
    slots: int = 1
    booked_tokens: float = 0.0
    tokens_per_s: float | None = None
    load_s: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class UpstreamView:
    """One upstream.

    Attributes:
        name: As the operator called it.
        weight: Its share under ``weighted``, a whole number from 1; a measure of capacity elsewhere.
        in_flight: Requests booked here and not over, of all models.
        models: What is known of each model here, by its key (``ModelName.key``).
    """

    name: str
    weight: int = 1
    in_flight: int = 0
    models: dict[str, ModelView] = field(default_factory=dict)

    def model(self, key: str) -> ModelView:
        """Return the view of a model here; made when it is first asked for."""
        view = self.models.get(key)
        if view is None:
            view = self.models[key] = ModelView()
        return view


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a request needs to know where it should go.

    Attributes:
        model_key: The model (``ModelName.key``).
        tokens: What it will probably take; as ``ModelView.booked_tokens``.
        prompt: Its text from the start, as far as it could have been seen before; "" if that is not asked.
    """

    model_key: str
    tokens: float = 128.0
    prompt: str = ""
