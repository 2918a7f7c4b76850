"""What others rely on: names, commands, parameter files, and the README's two commands."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import ollamalab
from ollamalab.cli.root import app
from ollamalab.runner.parameters import check, parameters_of

ROOT = Path(__file__).parent.parent
PACKAGES = [
    ollamalab.__name__,
    *(module.name for module in pkgutil.iter_modules(ollamalab.__path__, "ollamalab.") if module.ispkg),
]


def test_every_public_name_can_be_imported() -> None:
    for name in ollamalab.__all__:
        assert getattr(ollamalab, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        ollamalab.Nonsense  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_public_lists_are_complete_and_name_what_exists(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), f"{package}.__all__ names {name}"


def test_importing_the_package_brings_none_of_the_heavy_libraries() -> None:
    heavy = ("pandas", "matplotlib", "scipy", "papermill", "xllamacpp", "aiohttp", "httpx")
    script = f"import sys, ollamalab; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("file", sorted(ROOT.glob("params/*/*.yaml")), ids=lambda path: str(path.stem))
def test_every_parameter_file_fits_its_notebook(file: Path) -> None:
    notebook = ROOT / "notebooks" / f"{file.stem}.ipynb"
    parameters = parameters_of(json.loads(notebook.read_text()), notebook.name)
    check(yaml.safe_load(file.read_text()), parameters, file.name)


def test_the_readme_says_what_the_commands_are() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    groups = {group.name for group in app.registered_groups}
    for name in commands | groups:
        assert re.search(rf"`ollamalab {name}\b", readme), f"README.md does not mention `ollamalab {name}`"


def test_ci_runs_the_readmes_own_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    tests = re.search(r"<!-- tests -->\n```\n(.+)\n```", readme)
    assert tests is not None
    assert tests[1].endswith("&& .ci/check")
    assert "constraints.txt" in tests[1]


def test_the_version_is_told() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output == f"ollamalab {ollamalab.__version__}\n"


def test_a_missing_package_is_one_line_with_the_next_step() -> None:
    """The base installation is small; a command that needs more says what to install."""
    script = (
        "import sys; sys.modules['numpy'] = None; sys.argv = ['ollamalab', 'list'];"
        "from ollamalab.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "the package numpy is missing; run: pip install 'ollamalab[all]'" in ended.stderr
