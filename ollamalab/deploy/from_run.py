"""A profile from a run: what its contrasts showed to pay, and timeouts from the loads that it saw."""

from __future__ import annotations

import math
import re
from statistics import fmean
from typing import TYPE_CHECKING

import yaml

from ollamalab.deploy.profile import Line, Profile
from ollamalab.errors import RunError, SettingsError
from ollamalab.settings.files import gateway_settings

if TYPE_CHECKING:
    from ollamalab.report import Recommendation, Run

# ``report`` and ``metrics`` bring numpy: only for a run, since a host that serves has the small install.

#: Where ``ollama serve`` listens unless told otherwise.
OLLAMA_URL = "http://127.0.0.1:11434"

_VARIABLE = re.compile(r"OLLAMA_[A-Z0-9_]+")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_LOAD_REST = 3.0
_DEFAULT_LOAD_S = 300.0
_STEP_S = 10.0


def profile_of_run(run: Run) -> Profile:
    """Return what a run's findings ask for.

    Raises:
        RunError: The run is damaged, or names a setting or value that cannot be written into a file.
    """
    from ollamalab.report import recommend

    found = recommend(run)
    server = [_line(one) for one in found if one.pays and one.advice.part == "server"]
    gateway = [_line(one) for one in found if one.pays and one.advice.part == "gateway"]
    set_keys = {line.name for line in gateway}
    upstream = Line(name="upstream", value=[OLLAMA_URL], why=("ollama serve on this host",))
    if "load_timeout" not in set_keys:
        gateway.append(_load_timeout(run))
    lines = (upstream, *gateway)
    try:
        settings = gateway_settings(options={line.name: line.value for line in lines})
    except SettingsError as error:
        raise RunError(
            f"{run.folder.name} recommends what `ollamalab serve` cannot read: {error}; run it again"
        ) from error
    manifest = run.manifest
    versions = {
        str(entry.get("version")) for entry in manifest.server.values() if entry.get("kind") == "ollama"
    }
    return Profile(
        source=f"run {run.folder.name}",
        about=(
            f"measured {manifest.started_utc[:10]} on {manifest.machine.get('cpu_model') or 'a CPU'}, "
            f"{_gpu_names(run) or 'no GPU'}; profile {manifest.profile}; models {_models(run)}",
            "What pays there may not pay elsewhere: measure the host that will serve.",
        ),
        server=tuple(server),
        gateway=lines,
        settings=settings,
        left=tuple(map(_left, (one for one in found if not one.pays or one.advice.part not in _WRITTEN))),
        gpus=len(manifest.machine.get("gpus") or ()),
        version=max(versions, default=""),
        first_byte_s=_first_byte_s(run),
    )


_WRITTEN = ("server", "gateway")


def _line(found: Recommendation) -> Line:
    """Return a recommended setting as a line.

    Raises:
        RunError: Its name or value has no place on a line: run folders may come from anywhere.
    """
    advice = found.advice
    pattern = _VARIABLE if advice.part == "server" else _KEY
    if not pattern.fullmatch(advice.setting) or not advice.value.isprintable() or not advice.value.strip():
        raise RunError(
            f"{found.experiment} recommends {advice.setting!r} = {advice.value!r}, which is no setting of "
            f"the {advice.part}; run it again"
        )
    value: object = advice.value
    if advice.part == "gateway" and advice.value.lower() not in ("on", "off", "yes", "no"):
        value = _yaml_value(advice.value)
    others = (
        f"with other work {rival.advice.value} pays: {rival.word}: {rival.evidence}, {_from(rival)}"
        for rival in found.rivals
    )
    return Line(
        name=advice.setting, value=value, why=(f"{found.word}: {found.evidence}", _from(found), *others)
    )


def _yaml_value(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _from(found: Recommendation) -> str:
    return f"from {found.experiment}"


def _left(found: Recommendation) -> str:
    advice = found.advice
    kind = "" if advice.part in _WRITTEN else f"{advice.part}: "
    what = f"{kind}{advice.setting} = {advice.value}"
    if found.pays:
        return f"{what} pays, but is set elsewhere: {found.word}: {found.evidence}, {_from(found)}"
    return f"{what} is left as it is: {found.word}: {found.evidence}, {_from(found)}"


def _load_timeout(run: Run) -> Line:
    """Return how long a load may take: three times the slowest that was seen, never below the default."""
    from ollamalab.metrics import FINISHED

    loads = [
        record.server.load_s
        for experiment in run.experiments.values()
        for record in experiment.requests
        if record.server is not None and record.server.load_s is not None and record.outcome in FINISHED
    ]
    if not loads:
        return Line(
            name="load_timeout", value=int(_DEFAULT_LOAD_S), why=("the default: no load was measured",)
        )
    asked_s = math.ceil(_LOAD_REST * max(loads) / _STEP_S) * _STEP_S
    why = f"slowest of {len(loads)} load durations: {max(loads):.2f} s; three times that is {asked_s:g} s"
    if asked_s <= _DEFAULT_LOAD_S:
        return Line(name="load_timeout", value=int(_DEFAULT_LOAD_S), why=(f"{why}: the default is enough",))
    return Line(name="load_timeout", value=int(asked_s), why=(why,))


def _first_byte_s(run: Run) -> float | None:
    """Return the mean time to first token of the host inventory's busiest arm."""
    from ollamalab.metrics import planned_ttft_s

    inventory = run.experiments.get("01_host_inventory")
    if inventory is None:
        return None
    arms: dict[str, list[float]] = {}
    for record in inventory.requests:
        first_s = planned_ttft_s(record)
        if first_s is not None and not record.warmup:
            arms.setdefault(record.arm, []).append(first_s)
    return max(map(fmean, arms.values()), default=None)


def _gpu_names(run: Run) -> str:
    return ", ".join(str(gpu.get("name")) for gpu in run.manifest.machine.get("gpus") or ())


def _models(run: Run) -> str:
    names = {
        str(model.get("name"))
        for server in run.manifest.server.values()
        for model in server.get("models", ())
    }
    return ", ".join(sorted(names)) or "n/a"
