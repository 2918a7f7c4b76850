"""Renders the files that put a run's findings into service: nginx, compose, systemd, environment, alerts.

- ``profile``: what to set, each line with its evidence
- ``from_run``, ``from_config``: where a profile comes from: a run's findings, or a gateway's own file
- ``environment``, ``gateway_file``, ``systemd``, ``compose``, ``nginx``, ``alerts``: one kind of file each

Renderers are pure: a profile in, text out. Whatever comes from a run is checked before it becomes a line.
"""

from ollamalab.deploy.files import KINDS, render
from ollamalab.deploy.from_config import profile_of_config
from ollamalab.deploy.from_run import profile_of_run
from ollamalab.deploy.profile import Line, Profile

__all__ = ["KINDS", "Line", "Profile", "profile_of_config", "profile_of_run", "render"]
