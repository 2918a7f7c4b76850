"""Settings one at a time: what a text means, what is shown of it, and two models in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from lab_samples import compared, done

from ollamalab import lab
from ollamalab.compare import Metric, Visit
from ollamalab.errors import SettingsError
from ollamalab.hosts.target import RemoteTarget
from ollamalab.lab import DEFAULTS, ONE_MODEL, Held, Knob, PromptShape, Subject, Trials, Turn
from ollamalab.lab.trials import Visitor, run_visits
from ollamalab.protocol.lines import encode_line
from ollamalab.records import ServerTimings
from ollamalab.report import Advice
from ollamalab.settings import ServerSettings

PLAIN = ServerSettings(context_length=2048)
SHAPE = PromptShape(prompt_tokens=64, num_predict=2)
RESPONSE = Metric(name="response", unit="s", better="lower")


# What a text means


def test_a_variable_changes_its_own_setting_and_nothing_else() -> None:
    knob = Knob.parse("OLLAMA_KV_CACHE_TYPE=q8_0", PLAIN)
    assert knob.settings == ServerSettings(context_length=2048, kv_cache_type="q8_0")
    assert knob.options == {}
    assert knob.advice == Advice(part="server", setting="OLLAMA_KV_CACHE_TYPE", value="q8_0")
    assert Knob.parse("OLLAMA_KEEP_ALIVE=24h", PLAIN).settings.keep_alive_s == 86400.0
    assert Knob.parse("OLLAMA_CONTEXT_LENGTH=8192", PLAIN).settings.context_length == 8192


def test_a_name_in_small_letters_is_an_option_of_requests() -> None:
    knob = Knob.parse("num_batch=32", PLAIN)
    assert knob.settings == PLAIN
    assert knob.options == {"num_batch": 32}
    assert knob.advice == Advice(part="request", setting="options.num_batch", value="32")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_batch", "NAME=VALUE"),
        ("OLLAMA_NUM_PARALLEL=1", "the default"),
        ("OLLAMA_NUM_PARALLEL=many", "not readable"),
        ("OLLAMA_NUM_THREAD=4", "send the option num_thread"),
        ("OLLAMA_GPU_OVERHEAD=2048", "no setting of a server"),
        ("OLLAMA_KV_CACHE_TYPE=q9", "q9"),
        ("temperature=1", "no load-time option 'temperature'"),
        ("num_batch=q8_0", "neither a number"),
        ("num_batch=true", "num_batch"),
    ],
)
def test_what_would_compare_nothing_is_refused(text: str, words: str) -> None:
    """An arm that has the default's settings would be reported as "no difference shown"."""
    with pytest.raises(SettingsError, match=words):
        Knob.parse(text, PLAIN)


# What a knob does to a request


def two_knobs() -> list[Knob]:
    return [Knob.parse(text, PLAIN) for text in ("OLLAMA_FLASH_ATTENTION=1", "num_batch=8")]


def trials(seconds: Mapping[str, Sequence[float]]) -> Trials:
    """Return one request per launch, of so many seconds; half of them go to the first token."""
    server = ServerTimings(
        total_s=1, load_s=0, prompt_tokens=64, prompt_eval_s=0.5, eval_tokens=10, eval_s=0.5
    )
    records = [
        done(
            arm,
            visit=len(seconds) * block + place,
            block=block,
            first_s=s / 2,
            last_s=s,
            end_s=s,
            server=server,
        )
        for place, (arm, values) in enumerate(seconds.items())
        for block, s in enumerate(values)
    ]
    return Trials(arms=tuple(seconds), records=tuple(records))


def test_each_knob_has_one_primary_contrast_and_its_setting_is_the_advice() -> None:
    """Response alone settles; what it is made of gets intervals."""
    ones = [1.0 + 0.01 * place for place in range(8)]
    measured = trials(
        {DEFAULTS: ones, "OLLAMA_FLASH_ATTENTION=1": ones, "num_batch=8": [2 * s for s in ones]}
    )
    knobs = two_knobs()
    contrasts = lab.knob_contrasts(measured, knobs)
    assert [item.metric.name for item in contrasts] == ["response", "first token", "each further token"] * 2
    assert [item.is_primary for item in contrasts] == [True, False, False] * 2
    assert contrasts[3].estimate == pytest.approx(2)

    settled: list[tuple[str, Advice]] = []
    stand_in = SimpleNamespace(
        settle=lambda claim, item, subject, *, advice: settled.append((item.arm, advice))
    )
    lab.settle_knobs(cast("Any", stand_in), contrasts, knobs, cast("Any", None))
    assert settled == [(knob.name, knob.advice) for knob in knobs]

    title = lab.knobs_title(contrasts[:3])
    assert title == "No difference was shown for 1 setting"
    title = lab.knobs_title(contrasts)
    assert title == "num_batch=8 makes a response 2.00× as long; no difference was shown for 1 setting"
    sentence = lab.knob_sentence(contrasts[3])
    assert sentence.startswith("Response with num_batch=8 against the defaults: 2.00× (95 %")
    rows = lab.knob_rows(contrasts)
    assert rows["label"].iloc[0] == "FLASH_ATTENTION=1: response"
    assert list(rows["n"]) == [8] * 6


def test_a_title_says_when_there_is_no_verdict() -> None:
    assert "too few pairs" in lab.knobs_title([compared(RESPONSE, [(1.0, 1.0)])])
    assert "were not run" in lab.knobs_title([compared(RESPONSE, [])])


def test_rates_are_those_of_the_server_and_moments_those_of_the_client() -> None:
    table = lab.rates_table(trials({DEFAULTS: [1.0, 3.0]}))
    assert table.rows == ((DEFAULTS, 2, 128.0, 18.0, 1000.0, 2000.0),)


def test_memory_is_set_against_the_first() -> None:
    whole = Held(size_bytes=200_000_000, context_tokens=4096, stays_s=300.0)
    half = Held(size_bytes=100_000_000, context_tokens=None, stays_s=None)
    listed = {DEFAULTS: whole, "half": half, "gone": None}
    table = lab.held_table(listed)
    said = "Memory of the loaded model, in times of that with the defaults: 0.50× with half"
    assert lab.memory_sentence(listed) == said + "."
    same = listed | {"same": whole}
    assert lab.memory_sentence(same) == said + "; the same to the byte with same."
    assert lab.memory_sentence({lab.AS_IT_IS: whole}) == "Memory was not compared here."
    assert table.rows == (
        (DEFAULTS, 200.0, 1.0, 4096, 5.0),
        ("half", 100.0, 0.5, None, None),
        ("gone", None, None, None, None),
    )


# Two models in one place


class Places:
    """A server with room for so many models, which forgets the one asked longest ago.

    Attributes:
        room: Models at once.
        loaded: Names, the last asked last.
        options: Of each load.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.loaded: list[str] = []
        self.options: list[Any] = []

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        model, was_loaded = body["model"], body["model"] in self.loaded
        self.loaded = [name for name in self.loaded if name != model]
        if not body["messages"]:
            self.options.append(body.get("options"))
            if body.get("keep_alive") == 0:
                return web.json_response({"done": True})
        self.loaded = [*self.loaded, model][-self.room :]
        if not body["messages"]:
            return web.json_response({"done": True})
        said = {"message": {"role": "assistant", "content": "word"}, "done": False}
        final = {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "length",
            "total_duration": 2 * 10**9,
            "load_duration": 10**6 if was_loaded else 10**9,
            "prompt_eval_count": 64,
            "prompt_eval_duration": 10**8,
            "eval_count": 2,
            "eval_duration": 10**7,
        }
        return web.Response(body=encode_line(said) + encode_line(final), content_type="application/x-ndjson")

    async def ps(self, _: web.Request) -> web.Response:
        entry = {"size": 5_000_000, "context_length": 512, "expires_at": "2318-01-01T00:00:00.123456789Z"}
        return web.json_response({"models": [{"name": name, **entry} for name in self.loaded]})


class OnlyCompares:
    """What ``take_turns`` needs of a lab: it visits arm after arm."""

    def __init__(self, opened: AsyncExitStack) -> None:
        self.parameters = {"seed": 1}
        self.enter = opened.enter_async_context

    async def compare(self, visitors: Mapping[str, Visitor], *, pairs: int) -> Trials:
        visits = [
            Visit(index=len(visitors) * block + place, block=block, arm=arm)
            for block in range(pairs)
            for place, arm in enumerate(visitors)
        ]
        return await run_visits(visitors, visits)


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def subject_on(places: Places, opened: AsyncExitStack) -> Subject:
    app = web.Application()
    app.add_routes([web.post("/api/chat", places.chat), web.get("/api/ps", places.ps)])
    server = await opened.enter_async_context(TestServer(app))
    target = RemoteTarget(str(server.make_url("")).rstrip("/"), "0")
    return await opened.enter_async_context(Subject(target, "first:1b", seed=1))


async def test_a_limit_of_one_model_evicts_at_every_turn_and_the_default_never(
    opened: AsyncExitStack,
) -> None:
    """Seen in /api/ps, and in the load that each request then waits for."""
    roomy, narrow = Places(room=3), Places(room=1)
    subjects = {DEFAULTS: await subject_on(roomy, opened), ONE_MODEL: await subject_on(narrow, opened)}
    experiment = cast("Any", OnlyCompares(opened))
    turns = await lab.take_turns(experiment, subjects, "other:1b", SHAPE, pairs=4)
    assert [turn.other_is_gone for turn in turns[DEFAULTS]] == [False] * 4
    assert [turn.other_is_gone for turn in turns[ONE_MODEL]] == [True] * 4
    assert [turn.load_s for turn in turns[ONE_MODEL]] == [1.0] * 4
    rows = [row[:4] for row in lab.turns_table(turns).rows]
    assert rows == [(DEFAULTS, 4, 0, 1.0), (ONE_MODEL, 4, 4, 1000.0)]
    seen = lab.turns_seen(turns)
    assert seen.holds is False
    assert seen.n == 4
    assert "gone after 0 of 4 requests and a load took 1.0 ms" in seen.evidence
    assert "gone after 4 of 4 requests and a load took 1000 ms" in seen.evidence


async def test_turns_need_a_server_with_the_limit() -> None:
    experiment = cast("Any", None)
    turns = await lab.take_turns(experiment, {lab.AS_IT_IS: cast("Any", None)}, "other", SHAPE, pairs=4)
    assert turns == {}
    seen = lab.turns_seen(turns, not_run="not ours")
    assert (seen.holds, seen.evidence) == (None, "not ours")


def test_a_limit_that_evicts_nothing_would_hold() -> None:
    stays = Turn(other_is_gone=False, load_s=None, first_token_s=None)
    assert lab.turns_seen({ONE_MODEL: [stays]}).holds is True


async def test_a_model_is_looked_at_with_its_options_and_left_where_it_is_not_ours(
    opened: AsyncExitStack,
) -> None:
    places = Places(room=1)
    subject = await subject_on(places, opened)
    subject.options = {"num_ctx": 512}
    seen = await lab.held(subject)
    assert seen
    assert (seen.size_bytes, seen.context_tokens) == (5_000_000, 512)
    assert seen.stays_s
    assert seen.stays_s > 9e9
    assert places.options == [{"num_ctx": 512}]
    assert places.loaded == ["first:1b"]
