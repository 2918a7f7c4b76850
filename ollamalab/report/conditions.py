"""Under which conditions a run was made, and in which of them two runs differ.

Conditions are *hard* or *soft*. Numbers of another model, GPU, driver or processor are numbers of
something else: setting them against each other must be asked for. Another commit, package, server version
or setting is often the very question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ollamalab.errors import RunError
from ollamalab.report.runs import Run

_DIGEST = "digest of"
_SETTING = "setting"

#: Above so much more waiting work per core, a machine counts as busier.
_BUSIER = 0.5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One condition that two runs do not share.

    Attributes:
        name: What differs: "digest of llama3.2", "driver".
        before: In the first run; "n/a" if it does not say.
        after: In the second.
        is_hard: Whether it makes the runs incomparable.
    """

    name: str
    before: str
    after: str
    is_hard: bool

    def __str__(self) -> str:
        """In one line: "driver: 550.54 → 560.28"."""
        return f"{self.name}: {self.before} → {self.after}"


def differences(before: Run, after: Run) -> list[Difference]:
    """Return the conditions in which two runs differ, hard ones first."""
    first, second = dict(_conditions(before)), dict(_conditions(after))
    found = []
    for key in [*first, *(key for key in second if key not in first)]:
        name, is_hard = key
        one, other = first.get(key), second.get(key)
        if one != other and not (_is_of_one_run(name) and None in (one, other)):
            found.append(Difference(name=name, before=_shown(one), after=_shown(other), is_hard=is_hard))
    found += _load(before, after)
    return sorted(found, key=lambda difference: not difference.is_hard)


def refuse(found: list[Difference], before: Run, after: Run) -> None:
    """Refuse to compare runs that differ in a hard condition.

    Raises:
        RunError: They do; it names every such condition.
    """
    hard = "; ".join(str(difference) for difference in found if difference.is_hard)
    if hard:
        raise RunError(
            f"{after.folder.name} was not measured under the conditions of {before.folder.name} ({hard}); "
            "use --force to compare them nevertheless"
        )


def are_repetitions(one: Run, other: Run) -> bool:
    """Return whether two runs differ in nothing but the moment: same code, machine, models, settings.

    Load is left out, since it is what repetitions are to show; so are uncommitted changes to the same
    commit, which leave the code unknown: such runs repeat nothing.
    """
    if one.manifest.dirty or other.manifest.dirty:
        return False
    shared = set(one.experiments) & set(other.experiments)
    parameters = (run.manifest.parameters for run in (one, other))
    first, second = ({name: given.get(name) for name in shared} for given in parameters)
    return bool(shared) and first == second and dict(_conditions(one)) == dict(_conditions(other))


def other_parameters(before: Run, after: Run) -> dict[str, list[Difference]]:
    """Return the experiments whose parameters differ, each with the differences."""
    found = {}
    for name in before.experiments:
        if name in after.experiments:
            one, other = (run.experiments[name].file.parameters for run in (before, after))
            unlike = [
                Difference(
                    name=f"{name} {key}",
                    before=_shown(one.get(key)),
                    after=_shown(other.get(key)),
                    is_hard=False,
                )
                for key in {**one, **other}
                if one.get(key) != other.get(key)
            ]
            if unlike:
                found[name] = unlike
    return found


def shared_experiments(before: Run, after: Run) -> list[str]:
    """Return the experiments that both runs saved.

    Raises:
        RunError: There is none.
    """
    shared = [name for name in before.experiments if name in after.experiments]
    if not shared:
        sides = (
            f"{run.folder.name} saved {', '.join(run.experiments) or 'nothing'}" for run in (before, after)
        )
        raise RunError(f"the runs have no experiment in common: {'; '.join(sides)}")
    return shared


def _conditions(run: Run) -> Iterator[tuple[tuple[str, bool], Any]]:
    """Give name and hardness, and value, of every condition."""
    manifest, machine = run.manifest, run.manifest.machine
    yield ("CPU", True), machine.get("cpu_model")
    yield ("usable cores", True), machine.get("cpus_usable")
    yield ("GPUs", True), ", ".join(str(gpu.get("name")) for gpu in machine.get("gpus") or ()) or "none"
    yield ("driver", True), machine.get("driver")
    for name, digests in _digests(manifest.server).items():
        yield (f"{_DIGEST} {name}", True), ", ".join(sorted(digests))
    yield ("kernel", False), machine.get("kernel")
    yield ("commit", False), manifest.commit and manifest.commit[:10] + " + changes" * bool(manifest.dirty)
    servers = {f"{server.get('kind')} {server.get('version')}" for server in manifest.server.values()}
    yield ("servers", False), ", ".join(sorted(servers))
    for server_name, server in manifest.server.items():
        for setting, value in (server.get("settings") or {}).items():
            yield (f"{_SETTING} {setting} ({server_name})", False), value
    for package, version in manifest.packages.items():
        yield (f"package {package}", False), version


def _digests(servers: Mapping[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for server in servers.values():
        for model in server.get("models", ()):
            found.setdefault(model["name"], set()).add(str(model.get("digest"))[:12])
    return found


def _is_of_one_run(name: str) -> bool:
    """Whether a condition may be absent: nothing is compared with a model or server of one run only."""
    return name.startswith((_DIGEST, _SETTING))


def _load(before: Run, after: Run) -> list[Difference]:
    """Return the load of the machine at the start, where it differs by half a core's worth or more."""
    one, other = before.manifest.load_average, after.manifest.load_average
    cores = before.manifest.machine.get("cpus_usable") or 1
    if one is None or other is None or abs(one[0] - other[0]) < _BUSIER * cores:
        return []
    return [
        Difference(name="load at the start", before=f"{one[0]:.2f}", after=f"{other[0]:.2f}", is_hard=False)
    ]


def _shown(value: Any) -> str:
    return "n/a" if value is None else str(value)
