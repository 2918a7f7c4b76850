"""Alert rules for Prometheus over the gateway's ``/metrics``."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from ollamalab.deploy.profile import Profile, comments, heading

#: Times the measured time to first token that is worth a word: near saturation waits grow by such factors.
_SLOW = 3.0
_LEAST_SLOW_S = 1.0


@dataclass(frozen=True, kw_only=True)
class _Alert:
    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    advice: str
    why: str


def alerts_file(profile: Profile) -> str:
    """Return a rule file for ``rule_files``; its limits are the gateway's settings and what was measured."""
    lines = heading(
        profile,
        "For rule_files of Prometheus; check it with: promtool check rules FILE. "
        "Scrape http://127.0.0.1:11435/metrics under job_name: ollamalab.",
    )
    lines += ["groups:", "  - name: ollamalab", "    rules:"]
    for alert in _alerts(profile):
        rule = {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasts,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.advice},
        }
        text = yaml.safe_dump([rule], sort_keys=False, allow_unicode=True, width=1000)
        lines += comments((alert.why,), indent="      ")
        lines += [f"      {line}" for line in text.rstrip().splitlines()]
    return "\n".join(lines) + "\n"


def _alerts(profile: Profile) -> list[_Alert]:
    settings = profile.settings
    half_wait_s = settings.queue.queue_timeout_s / 2
    slow_s, slow_why = _slow_first_byte(profile)
    alerts = [
        _Alert(
            name="OllamalabDown",
            expression='up{job="ollamalab"} == 0',
            lasts="1m",
            severity="page",
            summary="The gateway does not answer.",
            advice="Look at `systemctl status ollamalab` or `docker compose logs gateway`.",
            why="One minute: four scrapes of 15 s.",
        ),
        _Alert(
            name="OllamalabUpstreamDown",
            expression="ollamalab_upstream_up == 0",
            lasts="1m",
            severity="page",
            summary="Upstream {{ $labels.upstream }} does not answer.",
            advice="Requests go to the others, if there are any. Run `ollamalab doctor` on its host.",
            why=f"Probed every {settings.cluster.probe_interval_s:g} s; a minute is no restart any more.",
        ),
        _Alert(
            name="OllamalabFailures",
            expression='sum(rate(ollamalab_requests_total{status=~"5.."}[5m])) '
            "/ sum(rate(ollamalab_requests_total[5m])) > 0.05",
            lasts="5m",
            severity="page",
            summary="{{ $value | humanizePercentage }} of the requests are answered 5xx.",
            advice="/lab/status shows which upstream and which kind of failure.",
            why="One in twenty; assumed, set it to what your clients bear.",
        ),
        _Alert(
            name="OllamalabBrokenStreams",
            expression='sum(rate(ollamalab_requests_total{ending="broken"}[5m])) '
            "/ sum(rate(ollamalab_requests_total[5m])) > 0.01",
            lasts="5m",
            severity="warn",
            summary="{{ $value | humanizePercentage }} of the answers broke off.",
            advice="An upstream ends streams early: look at its log, and at memory and driver of its GPU.",
            why="A broken answer cannot be repeated elsewhere: one in a hundred is worth a look; assumed.",
        ),
        _Alert(
            name="OllamalabQueueFull",
            expression='sum(rate(ollamalab_queue_requests_total{outcome="rejected"}[5m])) > 0',
            lasts="5m",
            severity="warn",
            summary="The queue refuses requests.",
            advice="More is asked than the servers can do: add one, or see what notebooks 07 and 12 find.",
            why=f"max_queue is {settings.queue.max_queue}; for five minutes it is no burst.",
        ),
        _Alert(
            name="OllamalabLongWaits",
            expression="histogram_quantile(0.9, sum by (le) "
            f"(rate(ollamalab_queue_wait_seconds_bucket[10m]))) > {half_wait_s:g}",
            lasts="10m",
            severity="warn",
            summary="A tenth of the requests wait {{ $value | humanizeDuration }} or longer.",
            advice="Soon they will be refused; see /lab/status for who waits behind whom.",
            why=f"Half of queue_timeout, {settings.queue.queue_timeout_s:g} s.",
        ),
        _Alert(
            name="OllamalabSlowFirstByte",
            expression="histogram_quantile(0.5, sum by (le) "
            f'(rate(ollamalab_first_byte_seconds_bucket{{cache!="hit"}}[10m]))) > {slow_s:g}',
            lasts="10m",
            severity="warn",
            summary="Half of the answers begin after {{ $value | humanizeDuration }} or later.",
            advice="Compare with the baseline: `ollamalab run` and `ollamalab compare BASELINE NEW`.",
            why=slow_why,
        ),
        _Alert(
            name="OllamalabRetriesDenied",
            expression="rate(ollamalab_retries_denied_total[5m]) > 0",
            lasts="5m",
            severity="warn",
            summary="So many requests fail that they are not tried again elsewhere.",
            advice="The retry budget is spent: several upstreams fail at once.",
            why="The budget keeps a fault from doubling the load.",
        ),
    ]
    if settings.store != "off":
        alerts.append(
            _Alert(
                name="OllamalabCacheErrors",
                expression="rate(ollamalab_cache_store_errors_total[5m]) > 0",
                lasts="5m",
                severity="warn",
                summary="The cache's store fails.",
                advice="Answers still come, from upstream. Look at the disk, or at Redis.",
                why=f"cache is {settings.store.partition(':')[0]}.",
            )
        )
    if settings.warmup.models:
        alerts.append(
            _Alert(
                name="OllamalabColdStarts",
                expression='increase(ollamalab_warmup_cold_starts_total{outcome="suffered"}[1h]) > 3',
                lasts="0m",
                severity="warn",
                summary="Requests waited for a load {{ $value }} times in an hour, despite warm-up.",
                advice="Something unloads them: OLLAMA_MAX_LOADED_MODELS, memory, or a client's keep_alive.",
                why=f"warm names {len(settings.warmup.models)} models, which should be in memory.",
            )
        )
    return alerts


def _slow_first_byte(profile: Profile) -> tuple[float, str]:
    """Return the limit in seconds, and what it rests on."""
    measured_s = profile.first_byte_s
    if measured_s is None:
        limit_s = profile.settings.queue.queue_timeout_s / 4
        return limit_s, "A quarter of queue_timeout: no time to first token was measured, so set your own."
    limit_s = max(_LEAST_SLOW_S, _SLOW * measured_s)
    why = (
        f"{_SLOW:g} times the mean time to first token under load in 01_host_inventory, {measured_s:.2f} s; "
        f"{_LEAST_SLOW_S:g} s at least."
    )
    return float(f"{limit_s:.2g}"), why
