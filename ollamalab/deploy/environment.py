"""The environment of ``ollama serve``: ``NAME=value`` lines for a shell, systemd or ``docker --env-file``."""

from __future__ import annotations

import shlex

from ollamalab.deploy.profile import Profile, comments, heading


def environment_file(profile: Profile) -> str:
    """Return the ``OLLAMA_*`` lines with their evidence."""
    lines = heading(profile, "For `ollama serve`: set -a; . ./ollama.env; ollama serve")
    for line in profile.server:
        lines += ["", *comments(line.why), f"{line.name}={shlex.quote(str(line.value))}"]
    if not profile.server:
        lines += ["", "# Nothing to set: no variable of the server was shown to pay."]
    if profile.left:
        lines += ["", *comments(profile.left)]
    return "\n".join(lines) + "\n"
