"""From records and samples to the small data frames that figures are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev

import pandas as pd
from scipy import stats

from ollamalab.compare import visit_values
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Statistic, Trials
from ollamalab.metrics import completed, decoding_shares
from ollamalab.records import RequestRecord, Sample


def values(records: Iterable[RequestRecord], metric: Callable[[RequestRecord], float | None]) -> pd.DataFrame:
    """Return columns ``arm`` and ``value``, one row per completed request."""
    rows = [(record.arm, metric(record)) for record in completed(records)]
    return pd.DataFrame(rows, columns=["arm", "value"])


def timeline(records: Iterable[RequestRecord]) -> pd.DataFrame:
    """Return the moments of each request, as ``plots.slot_timeline`` draws them."""
    rows = [(record.intended_s, record.first_token_s, record.last_token_s) for record in records]
    return pd.DataFrame(rows, columns=["intended_s", "first_token_s", "last_token_s"], dtype=float)


def series(samples: Iterable[Sample], source: str, name: str) -> pd.DataFrame:
    """Return one quantity of one source over time: columns ``at_s`` and ``value``."""
    rows = [
        (sample.at_s, sample.values[name])
        for sample in samples
        if sample.source == source and sample.values.get(name) is not None
    ]
    return pd.DataFrame(rows, columns=["at_s", "value"], dtype=float)


def sweep_points(trials: Trials, settings: Mapping[str, float], statistic: Statistic) -> pd.DataFrame:
    """Return a quantity by setting: ``x``, ``value``, ``low``, ``high`` (95 % t-interval over visits).

    Args:
        trials: One arm per setting.
        settings: Arm to the value of its setting.
        statistic: The quantity in one visit.
    """
    found = visit_values(trials.records, statistic)
    rows = []
    for arm, setting in settings.items():
        known = [value for visit, value in found.items() if visit.arm == arm and value is not None]
        if not known:
            continue
        mean, half = fmean(known), None
        if len(known) > 1:
            half = float(stats.t.ppf(0.975, len(known) - 1)) * stdev(known) / len(known) ** 0.5
        rows.append((setting, mean, half and mean - half, half and mean + half))
    return pd.DataFrame(rows, columns=["x", "value", "low", "high"], dtype=float)


def concurrency(trials: Trials) -> pd.DataFrame:
    """Return, by arm, the share of time in which 0, 1, 2 ... sequences decoded at once.

    Shares are averaged over the arm's visits; the pauses between visits do not count.
    """
    rows = {}
    for arm in trials.arms:
        shares = pd.DataFrame([decoding_shares(visit) for visit in _visits(trials.of(arm))])
        rows[arm] = shares.fillna(0.0).mean()
    return pd.DataFrame(rows).T.fillna(0.0)


def one_visit(trials: Trials, arm: str) -> list[RequestRecord]:
    """Return the records of the arm's last visit."""
    return _visits(trials.of(arm))[-1]


def most_at_once(records: Sequence[RequestRecord]) -> int:
    """Return the most sequences that decoded at the same time, in any visit."""
    return max((len(decoding_shares(visit)) - 1 for visit in _visits(records)), default=0)


def most_busy(samples: Iterable[Sample], subject: Subject) -> int | None:
    """Return the most slots that the engine had busy at once; None if it does not tell."""
    busy = [
        sample.values["busy"]
        for sample in samples
        if sample.source.startswith("slots") and sample.source.endswith(subject.target.url)
    ]
    known = [int(count) for count in busy if count is not None]
    return max(known, default=None)


def _visits(records: Iterable[RequestRecord]) -> list[list[RequestRecord]]:
    groups: dict[int | None, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(record.visit, []).append(record)
    return list(groups.values())
