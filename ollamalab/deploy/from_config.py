"""A profile from a gateway's own file."""

from __future__ import annotations

from pathlib import Path

from ollamalab.deploy.profile import Line, Profile
from ollamalab.settings.files import gateway_settings
from ollamalab.settings.yaml_keys import read_keys

_OFF = ("batch", "cache", "warm_keep")


def profile_of_config(file: Path) -> Profile:
    """Return what a gateway's YAML file asks for.

    Raises:
        SettingsError: ``ollamalab serve`` would refuse the file.
    """
    settings = gateway_settings(file)
    lines = tuple(
        # YAML reads a bare `off` as false.
        Line(
            name=name, value="off" if value is False and name in _OFF else value, why=(f"as in {file.name}",)
        )
        for name, value in read_keys(file).items()
    )
    places = settings.queue.max_concurrent
    server: tuple[Line, ...] = ()
    if places is not None:
        why = f"max_concurrent: {places} in {file.name}: as many slots as the gateway sends requests to"
        server = (Line(name="OLLAMA_NUM_PARALLEL", value=str(places), why=(why,)),)
    return Profile(
        source=file.name,
        about=("Nothing here was measured; --from RUN takes the settings that a run showed to pay.",),
        server=server,
        gateway=lines,
        settings=settings,
    )
