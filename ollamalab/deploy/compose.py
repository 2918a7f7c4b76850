"""compose: Ollama with its GPUs and the gateway in front of it, in one file.

An upstream on the host's own loopback cannot be reached from a container: each becomes a service of the
file. Others stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from ollamalab.deploy.gateway_file import key_blocks
from ollamalab.deploy.profile import Line, Profile, comments, heading
from ollamalab.settings import UpstreamSettings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Needs the NVIDIA container toolkit on the host.
_GPUS = (
    "    deploy:",
    "      resources:",
    "        reservations:",
    "          devices:",
    "            - driver: nvidia",
    "              count: all",
    "              capabilities: [gpu]",
)

#: Of an Ollama's container: where its models are kept.
_MODELS = "/models"

_STATE = "/var/lib/ollamalab"
_STOP_REST_S = 10


def compose_file(profile: Profile) -> str:
    """Return a whole ``compose.yaml``."""
    local = [upstream for upstream in profile.settings.upstreams if _is_local(upstream)]
    names = {
        upstream.url: "ollama" if place == 0 else f"ollama-{place + 1}"
        for place, upstream in enumerate(local)
    }
    lines = [
        *heading(
            profile,
            "OLLAMALAB_SOURCE=/path/to/a/clone/of/ollamalab docker compose up --build; "
            "clients: http://127.0.0.1:11435",
        ),
        "services:",
    ]
    for name in names.values():
        lines += _ollama(profile, name)
    lines += _gateway(profile, names)
    volumes = [*names.values(), *(["answers"] if _disk_folder(profile) else [])]
    if volumes:
        lines += ["", "volumes:", *(f"  {name}: {{}}" for name in volumes)]
    # Inline, so that one file is all there is; "$" would be read by compose.
    lines += ["", "configs:", "  gateway:", "    content: |"]
    for block in key_blocks(_inside(profile, names)):
        lines += [f"      {line.replace('$', '$$')}" for line in block]
    return "\n".join(lines) + "\n"


def _ollama(profile: Profile, name: str) -> list[str]:
    version = profile.version or "latest"
    lines = [
        f"  {name}:",
        f"    image: ollama/ollama:${{OLLAMA_VERSION:-{version}}}"
        + ("" if profile.version else "  # no Ollama was measured: pin the version that you test"),
        "    restart: unless-stopped",
        "    init: true",
        f"    volumes: ['{name}:{_MODELS}']",
        "    shm_size: 1gb  # ample: llama.cpp keeps weights and caches in its own and the GPU's memory",
        "    healthcheck:",
        "      test: [CMD, ollama, list]",
        "      interval: 10s",
        "      retries: 12",
        "      start_period: 30s",
    ]
    lines += ["    environment:", f"      OLLAMA_MODELS: {_MODELS}"]
    for line in profile.server:
        lines += comments(line.why, indent="      ")
        lines += [f"      {line.name}: {_scalar(str(line.value).replace('$', '$$'))}"]
    lines += comments((left for left in profile.left if "OLLAMA_" in left), indent="    ")
    if profile.gpus == 0:
        lines += ["    # No GPU on the measured host; on one with GPUs:"]
        return [*lines, *(line.replace("    ", "    # ", 1) for line in _GPUS)]
    return [*lines, *_GPUS]


def _gateway(profile: Profile, names: Mapping[str, str]) -> list[str]:
    settings = profile.settings
    lines = [
        "",
        "  gateway:",
        "    build:",
        "      context: ${OLLAMALAB_SOURCE:?the folder of a clone of ollamalab}",
        "      dockerfile_inline: |",
        "        FROM python:3.13-slim",
        "        COPY . /src",
        "        RUN pip install --no-cache-dir '/src[redis]' && useradd --system ollamalab \\",
        f"          && install -d -o ollamalab {_disk_folder(profile) or _STATE}",
        "        USER ollamalab",
        "    command: [ollamalab, serve, --config, /gateway.yaml]",
        "    restart: unless-stopped",
        "    # For this machine only, until you say otherwise.",
        f"    ports: ['127.0.0.1:{settings.port}:{settings.port}']",
        "    configs:",
        "      - {source: gateway, target: /gateway.yaml}",
        f"    stop_grace_period: {settings.stop_timeout_s + _STOP_REST_S:g}s"
        f"  # stop_timeout {settings.stop_timeout_s:g} s, then some",
        "    healthcheck:",
        "      test:",
        "        - CMD",
        "        - python",
        "        - -c",
        "        - import urllib.request as u; "
        f"u.urlopen('http://127.0.0.1:{settings.port}/healthz', timeout=3)",
        "      interval: 10s",
    ]
    mounts = [f"{path}:{path}:ro" for path in _files(profile)]
    if folder := _disk_folder(profile):
        mounts.append(f"answers:{folder}")
    if mounts:
        lines += ["    volumes:", *(f"      - {_scalar(mount)}" for mount in mounts)]
    keys = [upstream.api_key_env for upstream in settings.upstreams if upstream.api_key_env]
    if keys:
        lines += ["    environment:", *(f"      {key}: ${{{key}:?}}" for key in keys)]
    if names:
        lines += ["    depends_on:"]
        lines += [f"      {name}: {{condition: service_healthy}}" for name in names.values()]
    return lines


def _inside(profile: Profile, names: Mapping[str, str]) -> tuple[Line, ...]:
    """Return the gateway's keys as they are right inside its container."""
    upstreams = [_entry(upstream, names.get(upstream.url)) for upstream in profile.settings.upstreams]
    port = profile.settings.port
    whys = {line.name: line.why for line in profile.gateway}
    own = ("upstream", "host", "port")
    return (
        Line(
            name="upstream",
            value=upstreams,
            why=("services of this file by their names",) if names else whys["upstream"],
        ),
        Line(name="host", value="0.0.0.0", why=("inside the container; its port is published above",)),
        Line(name="port", value=port, why=("as it is published",)),
        *(line for line in profile.gateway if line.name not in own),
    )


def _entry(upstream: UpstreamSettings, service: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"url": f"http://{service}:11434" if service else upstream.url}
    entry["name"] = service if service and upstream.name == urlsplit(upstream.url).netloc else upstream.name
    if upstream.weight != 1:
        entry["weight"] = upstream.weight
    if upstream.api_key_file is not None:
        entry["api_key_file"] = str(upstream.api_key_file)
    if upstream.api_key_env:
        entry["api_key_env"] = upstream.api_key_env
    if upstream.ca_file is not None and not service:
        entry["ca_file"] = str(upstream.ca_file)
    if not upstream.verify and not service:
        entry["verify"] = False
    return entry


def _files(profile: Profile) -> list[Path]:
    """Return the files that the gateway reads, each once."""
    settings = profile.settings
    files = [settings.api_key_file]
    files += [file for upstream in settings.upstreams for file in (upstream.api_key_file, upstream.ca_file)]
    return list(dict.fromkeys(file.absolute() for file in files if file is not None))


def _disk_folder(profile: Profile) -> str:
    """Return the folder of a disk cache; "" without one."""
    store = profile.settings.store
    return str(PurePosixPath(store.removeprefix("disk:")).parent) if store.startswith("disk:") else ""


def _is_local(upstream: UpstreamSettings) -> bool:
    return urlsplit(upstream.url).hostname in _LOOPBACK


def _scalar(text: str) -> str:
    """Return a text as YAML reads it back, whatever it looks like."""
    return yaml.safe_dump(text, default_style='"', width=1000, allow_unicode=True).strip()
