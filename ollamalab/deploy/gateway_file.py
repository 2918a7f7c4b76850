"""The gateway's own YAML file."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from ollamalab.deploy.profile import Line, Profile, comments, heading


def gateway_file(profile: Profile) -> str:
    """Return the file for ``ollamalab serve --config``."""
    lines = heading(profile, "For `ollamalab serve --config gateway.yaml`; kill -HUP reloads upstreams.")
    lines += [line for block in key_blocks(profile.gateway) for line in ("", *block)]
    if profile.left:
        lines += ["", *comments(profile.left)]
    return "\n".join(lines) + "\n"


def key_blocks(keys: Sequence[Line]) -> list[list[str]]:
    """Return each key as the lines that it takes, its evidence first."""
    blocks = []
    for key in keys:
        text = yaml.safe_dump({key.name: key.value}, sort_keys=False, allow_unicode=True, width=1000)
        blocks.append([*comments(key.why), *text.rstrip().splitlines()])
    return blocks
