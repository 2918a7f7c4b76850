"""nginx in front of one or several gateways, so that answers pass as they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import urlsplit

from ollamalab.deploy.profile import Profile, heading
from ollamalab.settings import UpstreamSettings

_REST_S = 10
_KEPT = 32


def nginx_file(profile: Profile, gateways: Sequence[UpstreamSettings] = ()) -> str:
    """Return a whole ``nginx.conf``.

    Args:
        profile: What to deploy.
        gateways: Where gateways listen, with their weights; by default the one of the profile.
    """
    settings = profile.settings
    servers = gateways or [UpstreamSettings(url=f"http://{_address(settings.host, settings.port)}")]
    silence_s = math.ceil(profile.longest_silence_s + _REST_S)
    load = next(
        (" ".join(line.why) for line in profile.gateway if line.name == "load_timeout"), "its default"
    )
    lines = [
        *heading(
            profile, "A whole nginx.conf; beside other sites, put what is inside http { } into conf.d/."
        ),
        "events { worker_connections 4096; }",
        "http {",
        "  upstream ollamalab {",
        *(
            f"    server {urlsplit(server.url).netloc} weight={server.weight};  # {server.name}"
            for server in servers
        ),
        f"    keepalive {_KEPT};  # connections kept per worker, so that none is opened per request",
        f"    keepalive_timeout {math.ceil(settings.limits.idle_timeout_s / 2)}s;"
        f"  # closed before the gateway does, idle_timeout {settings.limits.idle_timeout_s:g} s",
        "  }",
        "  # A page of another site whose name was bent to this address (DNS rebinding) gets nothing.",
        "  server { listen 127.0.0.1:8080 default_server; return 421; }",
        "  server {",
        "    listen 127.0.0.1:8080;",
        "    server_name localhost 127.0.0.1;  # put the name here that clients use",
        "    client_max_body_size 0;  # the gateway has max_body and says so in Ollama's words",
        "    location / {",
        f"      proxy_pass {'https' if servers[0].url.startswith('https') else 'http'}://ollamalab;",
        "      proxy_http_version 1.1;  # with the next line: what keepalive needs",
        '      proxy_set_header Connection "";',
        "      proxy_set_header Host localhost;  # names are checked above, and again by the gateway",
        "      proxy_set_header X-Ollamalab-Client $remote_addr;  # whom the fair queue counts a request for",
        "      proxy_buffering off;  # lines of a stream leave at once; on, nginx gathers 4 to 8 KiB",
        "      proxy_request_buffering off;  # prompts are not written to files",
        "      proxy_cache off;  # the gateway's cache knows which questions are the same",
        "      gzip off;  # would gather lines, too",
        "      proxy_connect_timeout 5s;",
        "      # Longest silence that is no fault: "
        f"queue_timeout {settings.queue.queue_timeout_s:g} s, then the",
        f"      # larger of load_timeout {settings.load_timeout_s:g} s and request_timeout "
        f"{settings.request_timeout_s:g} s.",
        f"      # load_timeout: {' '.join(load.split())}",
        f"      proxy_read_timeout {silence_s}s;",
        f"      proxy_send_timeout {silence_s}s;",
        "    }",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _address(host: str, port: int) -> str:
    """Return where the gateway is reached from the same machine."""
    if host in ("0.0.0.0", "::", ""):
        return f"127.0.0.1:{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
