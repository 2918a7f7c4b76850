"""Which files there are of each kind, by name."""

from __future__ import annotations

from collections.abc import Sequence

from ollamalab.deploy.alerts import alerts_file
from ollamalab.deploy.compose import compose_file
from ollamalab.deploy.environment import environment_file
from ollamalab.deploy.gateway_file import gateway_file
from ollamalab.deploy.nginx import nginx_file
from ollamalab.deploy.profile import Profile
from ollamalab.deploy.systemd import gateway_unit, ollama_drop_in
from ollamalab.errors import SettingsError
from ollamalab.settings import UpstreamSettings

#: What can be rendered.
KINDS = ("nginx", "compose", "systemd", "env", "gateway", "alerts")


def render(
    kind: str, profile: Profile, *, program: str, gateways: Sequence[UpstreamSettings] = ()
) -> dict[str, str]:
    """Return the files of one kind: path inside a folder to text.

    Args:
        kind: One of ``KINDS``.
        profile: What to deploy.
        program: Absolute path of ``ollamalab``, for systemd.
        gateways: Where nginx finds gateways; by default where the profile's listens.

    Raises:
        SettingsError: There is no such kind.
    """
    if kind == "nginx":
        return {"nginx.conf": nginx_file(profile, gateways)}
    if kind == "compose":
        return {"compose.yaml": compose_file(profile)}
    if kind == "systemd":
        return {
            "ollama.service.d/ollamalab.conf": ollama_drop_in(profile),
            "ollamalab.service": gateway_unit(profile, program),
        }
    if kind == "env":
        return {"ollama.env": environment_file(profile)}
    if kind == "gateway":
        return {"gateway.yaml": gateway_file(profile)}
    if kind == "alerts":
        return {"ollamalab.rules.yaml": alerts_file(profile)}
    raise SettingsError(f"deploy knows {', '.join(KINDS)}, got {kind!r}")
