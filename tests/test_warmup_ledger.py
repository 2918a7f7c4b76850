"""Over a simulated day the ledger counts exactly what a second, slower count finds."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from warm_world import DAY, TICK_S, World, counted

from ollamalab.settings import WarmupSettings
from ollamalab.warmup import Totals


def lived(seed: int, ticks: int, **fields: object) -> World:
    world = World(seed, WarmupSettings(**{"keep": "auto", **fields}), ticks=ticks)  # type: ignore[arg-type]
    world.run()
    return world


def books(world: World) -> dict[str, Totals]:
    return {
        model.name: world.keeper.models[model.key].totals(world.ticks * TICK_S)
        for model in world.models
        if model.key in world.keeper.models
    }


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    ticks=st.integers(50, 2000),
    hold_cost=st.sampled_from([0.0, 0.001, 0.01, 0.1]),
    wanted=st.sampled_from([(), ("m0",), ("m0", "m1", "m2")]),
    keep=st.sampled_from(["auto", "off"]),
)
@example(seed=138, ticks=318, hold_cost=0.0, wanted=(), keep="auto")  # lost as a last request comes
@example(seed=443, ticks=303, hold_cost=0.0, wanted=(), keep="auto")  # lost unseen, and loaded for a request
@example(seed=980, ticks=1636, hold_cost=0.0, wanted=(), keep="auto")  # a hold of no length
@example(seed=768, ticks=881, hold_cost=0.0, wanted=(), keep="auto")  # restarted as a last request comes
def test_the_ledger_agrees_with_a_count_by_brute_force(
    seed: int, ticks: int, hold_cost: float, wanted: tuple[str, ...], keep: str
) -> None:
    world = lived(seed, ticks, hold_cost=hold_cost, models=wanted, keep=keep)
    assert books(world) == {
        model.name: counted(model) for model in world.models if model.key in world.keeper.models
    }


@pytest.mark.parametrize("seed", range(3))
def test_over_a_whole_day_too(seed: int) -> None:
    """... and enough happens in it that the agreement means something."""
    world = lived(seed, DAY, hold_cost=0.003, models=("m0",))
    found = books(world)
    assert found == {model.name: counted(model) for model in world.models}
    everything = Totals()
    for totals in found.values():
        everything.add(totals)
    assert min(everything.avoided, everything.wasted, everything.suffered, everything.renewals) > 3
    assert everything.held_s >= everything.wasted_s > 0
    assert everything.preloads > 0


@pytest.mark.parametrize("seed", range(5))
def test_without_keeping_nothing_is_held_or_saved(seed: int) -> None:
    for totals in books(lived(seed, 3000, keep="off")).values():
        assert totals == Totals(suffered=totals.suffered, suffered_s=totals.suffered_s)


@pytest.mark.parametrize("seed", range(5))
def test_keeping_never_makes_more_cold_starts(seed: int) -> None:
    kept, unkept = lived(seed, DAY, hold_cost=0.003), lived(seed, DAY, keep="off")
    assert sum(t.suffered for t in books(kept).values()) <= sum(t.suffered for t in books(unkept).values())
