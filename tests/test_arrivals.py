"""Plans say when each request is due, and nothing but the plan does."""

import math
import random
import statistics
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.arrivals import ArrivalPattern, Arrivals, plan_s
from ollamalab.errors import SettingsError

POISSON = Arrivals(pattern=ArrivalPattern.POISSON, rate_rps=10.0)
CONSTANT = Arrivals(pattern=ArrivalPattern.CONSTANT, rate_rps=10.0)
AT_ONCE = Arrivals(pattern=ArrivalPattern.AT_ONCE)

open_arrivals = st.one_of(
    st.just(AT_ONCE),
    st.builds(
        Arrivals,
        pattern=st.sampled_from([ArrivalPattern.POISSON, ArrivalPattern.CONSTANT]),
        rate_rps=st.floats(0.001, 1e6),
    ),
)


def test_constant_arrivals_are_evenly_spaced_to_the_last() -> None:
    """Request 1,000,000 at 10/s is due at 100,000 s exactly; a running sum would be off."""
    plan = plan_s(CONSTANT, random.Random(0), requests=1_000_001)
    assert plan[:3] == [0.0, 0.1, 0.2]
    assert plan[-1] == 100_000.0


def test_poisson_gaps_are_exponential() -> None:
    """Mean and standard deviation are both 1/rate; 37 % of the gaps are longer than that."""
    plan = plan_s(POISSON, random.Random(1), requests=50_001)
    gaps = [later - earlier for earlier, later in pairwise(plan)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.02)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.02)
    assert sum(gap > 0.1 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.01)


def test_all_at_once_is_at_once() -> None:
    assert plan_s(AT_ONCE, random.Random(0), requests=5) == [0.0] * 5


@given(open_arrivals, st.integers(0, 1000), st.integers(1, 200))
def test_a_plan_has_as_many_as_asked_ascends_from_zero_and_repeats(
    arrivals: Arrivals, seed: int, requests: int
) -> None:
    plan = plan_s(arrivals, random.Random(seed), requests=requests)
    assert len(plan) == requests
    assert plan[0] == 0.0
    assert plan == sorted(plan)
    assert plan == plan_s(arrivals, random.Random(seed), requests=requests)


@given(st.sampled_from([POISSON, CONSTANT]), st.integers(0, 1000), st.floats(0.01, 30))
def test_a_duration_cuts_the_same_plan(arrivals: Arrivals, seed: int, duration_s: float) -> None:
    """The plan for a duration is the beginning of the longer one, up to that moment and not beyond."""
    plan = plan_s(arrivals, random.Random(seed), duration_s=duration_s)
    longer = plan_s(arrivals, random.Random(seed), requests=len(plan) + 1)
    assert plan == longer[:-1]
    assert plan[-1] < duration_s <= longer[-1]


def test_the_earlier_of_two_bounds_holds() -> None:
    assert len(plan_s(CONSTANT, random.Random(0), requests=3, duration_s=100.0)) == 3
    assert len(plan_s(CONSTANT, random.Random(0), requests=300, duration_s=1.0)) == 10


def test_other_seeds_plan_otherwise() -> None:
    plans = {tuple(plan_s(POISSON, random.Random(seed), requests=5)) for seed in range(20)}
    assert len(plans) == 20


def test_a_pattern_may_be_plain_text_as_in_parameter_files() -> None:
    arrivals = Arrivals(pattern="constant", rate_rps=2.0)  # type: ignore[arg-type]
    assert plan_s(arrivals, random.Random(0), requests=3) == [0.0, 0.5, 1.0]
    assert arrivals.is_open
    assert not Arrivals(pattern="closed").is_open  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pattern": "poison", "rate_rps": 1.0}, "'poison'"),
        ({"pattern": ArrivalPattern.POISSON}, "None"),
        ({"pattern": ArrivalPattern.CONSTANT, "rate_rps": 0.0}, "0.0"),
        ({"pattern": ArrivalPattern.CONSTANT, "rate_rps": -1.0}, "-1.0"),
        ({"pattern": ArrivalPattern.POISSON, "rate_rps": math.nan}, "nan"),
        ({"pattern": ArrivalPattern.POISSON, "rate_rps": math.inf}, "inf"),
        ({"pattern": ArrivalPattern.CLOSED, "rate_rps": 5.0}, "5.0"),
        ({"pattern": ArrivalPattern.AT_ONCE, "rate_rps": 5.0}, "5.0"),
    ],
)
def test_arrivals_that_make_no_sense_are_refused_with_their_value(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        Arrivals(**fields)


@pytest.mark.parametrize(
    ("arrivals", "bounds", "told"),
    [
        (Arrivals(), {"requests": 5}, "closed"),
        (CONSTANT, {}, "number of requests or a duration"),
        (CONSTANT, {"requests": 0}, "got 0"),
        (CONSTANT, {"duration_s": 0.0}, "got 0.0"),
        (CONSTANT, {"duration_s": math.inf}, "got inf"),
        (AT_ONCE, {"duration_s": 3.0}, "not a duration"),
    ],
)
def test_a_plan_without_an_end_is_refused(arrivals: Arrivals, bounds: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        plan_s(arrivals, random.Random(0), **bounds)
