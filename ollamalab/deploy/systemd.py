"""systemd: a drop-in for Ollama's own unit, and a unit for the gateway."""

from __future__ import annotations

from pathlib import PurePosixPath

from ollamalab.deploy.profile import Profile, comments, heading
from ollamalab.settings import GatewaySettings

CONFIG_PATH = "/etc/ollamalab/gateway.yaml"

_ENVIRONMENT_PATH = "/etc/ollamalab/gateway.env"
_STATE = PurePosixPath("/var/lib/ollamalab")
_STOP_REST_S = 10


def ollama_drop_in(profile: Profile) -> str:
    """Return ``ollama.service.d/ollamalab.conf``: the server's environment."""
    lines = heading(
        profile,
        "For /etc/systemd/system/ollama.service.d/ollamalab.conf; "
        "then: systemctl daemon-reload && systemctl restart ollama",
    )
    lines += ["[Service]"]
    for line in profile.server:
        lines += [*comments(line.why), f"Environment={_quoted(f'{line.name}={line.value}')}"]
    if not profile.server:
        lines += ["# Nothing to set: no variable of the server was shown to pay."]
    if profile.left:
        lines += comments(profile.left)
    return "\n".join(lines) + "\n"


def gateway_unit(profile: Profile, program: str) -> str:
    """Return ``ollamalab.service``.

    Args:
        profile: What to deploy.
        program: Absolute path of ``ollamalab`` on the host that serves.
    """
    settings = profile.settings
    lines = [
        *heading(
            profile,
            f"For /etc/systemd/system/ollamalab.service; its settings: {CONFIG_PATH} "
            "(ollamalab deploy gateway writes it).",
        ),
        "[Unit]",
        "Description=ollamalab gateway in front of Ollama",
        "# It waits for its servers by itself; the order only spares a few failed probes.",
        "Wants=network-online.target",
        "After=network-online.target ollama.service",
        "",
        "[Service]",
        *_start(settings, program),
        "# Takes other upstreams and warm keys from the file.",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=on-failure",
        f"# stop_timeout is {settings.stop_timeout_s:g} s: streams under way finish first.",
        f"TimeoutStopSec={settings.stop_timeout_s + _STOP_REST_S:g}",
        f"# max_connections is {settings.limits.max_connections}; each may need one to a server.",
        f"LimitNOFILE={2 * settings.limits.max_connections + 1024}",
        "# A user of its own that can write nothing but its state; a program in /root is out of its reach.",
        "DynamicUser=yes",
        f"StateDirectory={_STATE.name}",
        "ProtectHome=read-only",
        "NoNewPrivileges=yes",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        *_writable(settings),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _start(settings: GatewaySettings, program: str) -> list[str]:
    """Return the command, and where its secrets come from: the service's user may not read them itself."""
    command = f"ExecStart={_quoted(program.replace('$', '$$'))} serve --config {CONFIG_PATH}"
    lines = []
    if settings.api_key_file is not None:
        lines += [f"LoadCredential=keys:{settings.api_key_file.absolute()}"]
        command += " --api-key-file %d/keys"
    if any(upstream.api_key_env for upstream in settings.upstreams):
        lines += [
            "# NAME=value lines with the keys that api_key_env names; root's own, mode 0600.",
            f"EnvironmentFile={_ENVIRONMENT_PATH}",
        ]
    return [*lines, command]


def _writable(settings: GatewaySettings) -> list[str]:
    """Return the line that lets a disk cache outside the state folder be written."""
    if not settings.store.startswith("disk:"):
        return []
    folder = PurePosixPath(settings.store.removeprefix("disk:")).parent
    if not folder.is_absolute() or folder == _STATE or _STATE in folder.parents:
        return []
    return [
        "# cache: its user is drawn anew, so that this folder must be writable for it.",
        f"ReadWritePaths={_quoted(str(folder))}",
    ]


def _quoted(text: str) -> str:
    r"""Return a word as systemd reads it back: "%" begins a specifier, "\" an escape."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
