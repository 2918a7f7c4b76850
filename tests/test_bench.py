"""``ollamalab bench``: the document is the contract, bad input is one line, Ctrl-C keeps what there is."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from rich.console import Console

from ollamalab.cli import main
from ollamalab.cli.bench_view import progress_line, show
from ollamalab.loadgen import InstrumentHealth, LoadProgress, LoadResult, LoadSettings, load_summary
from ollamalab.metrics import lindley_response_s
from ollamalab.records import Outcome, RequestRecord
from ollamalab.scripted import Fault, Script, ScriptedServer

QUICK: dict[str, Any] = {"first_s": 0.004, "gap_s": 0.001, "tokens": 6}
FIGURES = {"mean", "p50", "p90", "p95", "p99", "n"}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def records_in(file: str) -> list[RequestRecord]:
    return [msgspec.json.decode(line, type=RequestRecord) for line in Path(file).read_bytes().splitlines()]


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


async def start(*arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from ollamalab.cli import main; main()", "bench"),
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def bench(*arguments: object) -> Ended:
    return await end(await start(*arguments))


async def test_the_document_has_the_keys_of_the_contract_and_says_whether_the_client_was_fit(
    tmp_path: Path,
) -> None:
    file = tmp_path / "result.json"
    async with ScriptedServer(Script(**QUICK)) as server:
        ended = await bench(
            *(server.url, "--model", "scripted", "--concurrency", 3, "--requests", 12, "--num-predict", 6),
            *("--json", file),
        )
        assert (ended.status, ended.err) == (0, "")
        assert len(server.log) == 15, "three of warm-up, one per client"
    document = json.loads(file.read_text())
    summaries = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "response_s", "send_lag_s")
    assert set(document) == {
        *("schema", "target", "model", "arrivals", "offered_rps", "achieved_rps", "requests", "outcomes"),
        *("duration_s", "output_tokens", "output_tokens_per_s", "client_cpu_ratio", "stages_s", "records"),
        *("loop_lag_s", "load_average", "fit", "unfit_reasons"),
        *summaries,
    }
    for name in summaries:
        assert set(document[name]) == FIGURES
    stages = document["stages_s"]
    assert set(stages) == {"connect", "load", "slot_wait", "prompt_eval", "eval", "network"}
    assert all(set(stage) == FIGURES for stage in stages.values())
    assert (document["target"], document["model"]) == (server.url, "scripted")
    assert (document["schema"], document["arrivals"], document["offered_rps"]) == (1, "closed", None)
    assert document["outcomes"] == {str(outcome): 12 * (outcome is Outcome.OK) for outcome in Outcome}
    assert (document["requests"], document["output_tokens"]) == (12, 72)
    assert document["ttft_s"]["n"] == 12
    assert document["ttft_s"]["p50"] is not None
    assert document["ttft_s"]["p90"] is None, "12 requests cannot carry it"
    assert [record.warmup for record in records_in(document["records"])] == [True] * 3 + [False] * 12
    assert names_in(tmp_path) == ["result.json", "result.records.jsonl"]


async def test_an_open_loop_counts_from_the_plan_and_says_when_it_is_overloaded(tmp_path: Path) -> None:
    script = Script(first_s=0.02, gap_s=0.004, tokens=6, slots=1)
    async with ScriptedServer(script) as server:
        ended = await bench(
            *(server.url, "--model", "scripted", "--rate", 100, "--arrivals", "constant", "--requests", 20),
            *("--json", tmp_path / "result.json"),
        )
        assert len(server.log) == 20
    document = json.loads((tmp_path / "result.json").read_text())
    planned_s = [index / 100 for index in range(20)]
    truth = lindley_response_s(planned_s, [script.service_s(index) for index in range(20)])
    assert document["response_s"]["mean"] >= sum(truth) / 20 - 0.002
    assert document["response_s"]["p50"] is None, "in a growing queue it would measure the run's length"
    assert (document["arrivals"], document["offered_rps"]) == ("constant", 100)
    assert "overloaded" in ended.out
    assert "20 answers ended before the length asked for" in ended.out


async def test_ctrl_c_prints_and_writes_what_there_is(tmp_path: Path) -> None:
    script = Script(**QUICK, faults=dict.fromkeys(range(4, 99), Fault.STUCK))
    async with ScriptedServer(script) as server:
        process = await start(
            server.url, "--model", "scripted", "--requests", 90, "--json", tmp_path / "result.json"
        )
        await server.received(5)
        process.send_signal(signal.SIGINT)
        ended = await end(process)
        await server.ended(5)
    assert ended.status == 130
    assert "interrupted" in ended.out
    document = json.loads((tmp_path / "result.json").read_text())
    assert (document["outcomes"]["ok"], document["outcomes"]["cancelled"]) == (3, 1)
    assert document["requests"] == 4


async def test_a_run_without_one_good_answer_is_a_finding() -> None:
    faults = dict.fromkeys(range(3), Fault.BUSY)
    async with ScriptedServer(Script(**QUICK, faults=faults)) as server:
        ended = await bench(server.url, "--model", "scripted", "--requests", 3, "--warmup", 0)
    assert ended.status == 1
    assert "3 × HTTP 503: server busy" in ended.out


async def test_a_missing_model_or_server_is_one_line_and_status_2() -> None:
    async with ScriptedServer(Script(**QUICK)) as server:
        for more in ((), ("--warmup", 0)):
            ended = await bench(server.url, "--model", "absent", *more)
            assert (ended.status, ended.out) == (2, "")
            assert ended.err.startswith(f"ollamalab: {server.url}: model 'absent' not found; it has scripted")
            assert ended.err.count("\n") == 1
        assert server.log == []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ended = await bench(f"127.0.0.1:{unused.getsockname()[1]}", "--model", "any")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "is `ollama serve` running there?" in ended.err


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers chats in one word, and keeps what it was sent, key included."""
    got: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.Response:
        got.append({"key": request.headers.get("Authorization"), **await request.json()})
        said = {"message": {"role": "assistant", "content": "yes"}, "done": True, "eval_count": 1}
        return web.json_response(said)

    app = web.Application()
    app.router.add_post("/api/chat", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", got
    finally:
        await runner.cleanup()


async def test_what_is_sent_is_what_was_asked(tmp_path: Path) -> None:
    """Also to a server that knows nothing but ``/api/chat``."""
    key, prompts = tmp_path / "key", tmp_path / "prompts.jsonl"
    key.write_text("# ours\nbench s3cret\n")
    prompts.write_text(
        '{"prompt": "one", "num_predict": 5}\n\n{"messages": [{"role": "user", "content": "two"}]}\n'
    )
    async with recording() as (url, got):
        ended = await bench(
            *(url, "--model", "any", "--requests", 4, "--warmup", 0, "--prompts", prompts),
            *("--option", "temperature=0.5", "--option", 'stop=["x"]', "--option", "note=plain text"),
            *("--api-key-file", key),
        )
    assert ended.status == 0
    assert {body["key"] for body in got} == {"Bearer s3cret"}
    assert [body["messages"][-1]["content"] for body in got] == ["one", "two", "one", "two"]
    assert [body["options"].pop("num_predict") for body in got] == [5, 128, 5, 128]
    assert all(body["options"] == {"temperature": 0.5, "stop": ["x"], "note": "plain text"} for body in got)
    starts = {body["messages"][0]["content"] for body in got}
    assert len(starts) == 4, "a nonce opens each prompt, before anything that could be shared"


async def test_the_default_load_is_loaded_beforehand_with_the_same_options() -> None:
    async with recording() as (url, got):
        await bench(url, "--model", "any", "--requests", 1, "--option", "num_ctx=512", "--num-predict", 7)
    preload, *traffic = got
    assert preload["messages"] == []
    assert preload["options"]["num_ctx"] == 512
    assert len(traffic) == 2
    assert all(body["options"]["num_ctx"] == 512 for body in traffic)
    assert all(body["options"]["num_predict"] == 7 for body in traffic)


async def test_files_are_written_both_or_neither(tmp_path: Path) -> None:
    (tmp_path / "result.records.jsonl").mkdir()
    async with ScriptedServer(Script(**QUICK)) as server:
        ended = await bench(
            server.url, "--model", "scripted", "--requests", 1, "--json", tmp_path / "result.json"
        )
    assert ended.status == 2
    assert ended.err.startswith("ollamalab: cannot save")
    assert names_in(tmp_path) == ["result.records.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rate 3 --concurrency 2", "not both"),
        ("--requests 3 --duration 2", "not both"),
        ("--prompt a --prompts b", "not both"),
        ("--arrivals poisson", "needs --rate"),
        ("--rate 3 --arrivals burst", "'burst'"),
        ("--rate 0", "rate_rps"),
        ("--concurrency 0", "clients"),
        ("--requests 0", "requests"),
        ("--duration -1", "duration_s"),
        ("--warmup -1", "warmup"),
        ("--num-predict 0", "--num-predict"),
        ("--option temperature", "KEY=VALUE"),
        ("--option num_predict=3", "--num-predict"),
        ("--prompts /absent.jsonl", "/absent.jsonl"),
        ("--api-key-file /absent.key", "/absent.key"),
        ("--json /absent/result.json", "/absent"),
        ("--json /", "is a folder"),
        ("--json /proc/result.json", "nothing can be written there"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_sent(
    arguments: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["ollamalab", "bench", "127.0.0.1:1", "--model", "m", *arguments.split()]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    err = capsys.readouterr().err
    assert (caught.value.code, err.count("\n")) == (2, 1)
    assert words in err


async def test_a_key_that_no_header_can_carry_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("name schlüssel\n", encoding="utf-8")
    ended = await bench("127.0.0.1:1", "--model", "m", "--api-key-file", tmp_path / "key")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "a key is ASCII" in ended.err
    assert "schlüssel" not in ended.err


def test_gaps_that_the_client_made_are_not_shown_and_said_to_be_so() -> None:
    """Chunks that share a read have no gaps of the server's; too few requests is not the reason."""
    moments: dict[str, Any] = {"intended_s": 0.0, "sent_s": 0.0, "first_token_s": 1.0, "last_token_s": 2.0}
    record = RequestRecord(
        index=0,
        target="t",
        model="m",
        outcome=Outcome.OK,
        end_s=2.0,
        token_times_s=(1.0, 2.0, 2.0, 2.0),
        shared_reads=2,
        **moments,
    )
    health = InstrumentHealth(
        cpu_ratio=0.1, loop_lag_s=None, send_lag_s=None, load_average=(0.0, 0.0, 0.0), reasons=()
    )
    result = LoadResult(
        settings=LoadSettings(requests=1), records=(record,), planned=1, health=health, is_complete=True
    )
    console = Console(record=True, width=120, file=io.StringIO())
    show(console, result, load_summary(result, target="t", model="m", records=None))
    assert "no itl: 50% of the chunks came in one read with others" in console.export_text()


def test_the_progress_line_tells_what_failed_and_what_is_under_way() -> None:
    progress = LoadProgress(planned=50, offered=12, ended=9, failed=2, elapsed_s=3.4)
    assert progress_line(progress) == "9 of 50 ended · 2 failed · 3 in flight · 3 s"
    open_ended = LoadProgress(planned=None, offered=1, ended=0, failed=0, elapsed_s=0.2)
    assert progress_line(open_ended) == "0 ended · 1 in flight · 0 s"
