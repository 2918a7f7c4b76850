"""``run``, ``list`` and ``report``, as processes, on tiny notebooks with real kernels."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from ollama_standin import serving
from tiny_lab import add_notebook, add_parameters

from ollamalab.report import load_run, read_manifest, run_folders

#: Counts its executions, says where it runs and with what, and saves a table.
GOOD = """
import os, sys
from pathlib import Path
from ollamalab.report import Column, Report, Table
with Path("ran").open("a") as file:
    file.write("x")
report = Report("01_good", parameters={"repeats": repeats})
facts = (sys.prefix, os.getcwd(), repeats)
report.add_table(Table.of("facts", "Facts", [Column(name=name) for name in "abc"], [facts]))
report.server["here"] = {"kind": "embedded", "version": "1"}
saved = report.save()
"""

FAILING = """
# papermill_description=open_target
raise ValueError("no answer\\nfrom there")
"""

ELSEWHERE = """
from ollamalab.errors import NotRun
raise NotRun("http://gpu1 is one server; name others in peers")
"""

#: The first time it tells its process, then waits until it is interrupted, and says that it cleaned up.
WAITING = """
# papermill_description=wait
import asyncio, os, subprocess, sys
from pathlib import Path
if not Path("cleaned").exists():
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path("pids").write_text(f"{os.getpid()} {server.pid}")
    Path("fifo").write_text("begun")
    try:
        await asyncio.Event().wait()
    finally:
        Path("cleaned").touch()
"""

REPORT = """
from ollamalab.report import load_run, shown_folder
import os
print(sorted(load_run(shown_folder(os.environ)).experiments))
"""


def ollamalab(lab: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a lab."""
    return subprocess.run(command(arguments), cwd=lab, capture_output=True, text=True, check=False)


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", "from ollamalab.cli import main; main()", *arguments]


def only_run(lab: Path) -> Path:
    """Return the folder of the lab's single run."""
    (folder,) = run_folders(lab / "results")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return a lab and its run: one notebook saves, one fails, one kills its process, one collects."""
    lab = tmp_path_factory.mktemp("lab")
    add_notebook(lab, "01_good", GOOD, parameters="repeats: int = 3  # times")
    add_notebook(lab, "02_failing", FAILING, "never = True")
    add_notebook(lab, "03_dying", "import os\nos.kill(os.getpid(), 9)")
    add_notebook(lab, "15_report", REPORT)
    add_parameters(lab, "quick", "01_good", "repeats: 4\n")
    return lab, ollamalab(lab, "run")


def test_one_failing_notebook_does_not_stop_the_rest(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Exit status 1; a line per notebook, with failing cell and error; the report comes last."""
    _, done = finished
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    lines = lines[next(number for number, line in enumerate(lines) if line.startswith("results/")) :]
    assert [line[:12] for line in lines[1:5]] == [
        "✓ 01_good   ",
        "✕ 02_failing",
        "✕ 03_dying  ",
        "✓ 15_report ",
    ]
    assert "code cell 2 (open target): ValueError: no answer from there" in lines[2]
    assert "its process died without a word" in lines[3]
    assert "2 done, 2 failed · results/" in lines[5]
    assert done.stderr == ""


def test_what_has_nothing_to_measure_here_is_not_run_and_no_failure(tmp_path: Path) -> None:
    """Exit status 0, the reason on its line and in the report; a resumed run does not try it again."""
    add_notebook(tmp_path, "09_elsewhere", ELSEWHERE)
    add_notebook(tmp_path, "15_report", REPORT)
    done = ollamalab(tmp_path, "run")
    assert (done.returncode, done.stderr) == (0, "")
    reason = "http://gpu1 is one server; name others in peers"
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("– 09_elsewhere"))
    assert line.endswith(f"not run: {reason}")
    assert "1 done, 1 not run · results/" in done.stdout
    folder = only_run(tmp_path)
    assert read_manifest(folder).experiments == {"09_elsewhere": "not run", "15_report": "done"}
    page = (folder / "report.html").read_text()
    assert f"<b>Not run.</b> {reason}" in page
    assert "Failed in" not in page
    again = ollamalab(tmp_path, "run", "--resume")
    assert again.returncode == 2
    assert "no unfinished run" in again.stderr


def test_a_run_leaves_what_the_contract_names(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Manifest, executed notebooks, JSON and parquet per experiment, report; nothing hidden."""
    folder = only_run(finished[0])
    names = {path.name for path in folder.iterdir()}
    assert {
        "manifest.json",
        "report.html",
        "01_good.ipynb",
        "01_good.json",
        "01_good.parquet",
        "01_good.samples.parquet",
        "02_failing.ipynb",
        "03_dying.ipynb",
        "15_report.ipynb",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    manifest = read_manifest(folder)
    assert manifest.experiments == {
        "01_good": "done",
        "02_failing": "failed",
        "03_dying": "failed",
        "15_report": "done",
    }
    assert manifest.finished_utc is not None
    assert manifest.server == {"here": {"kind": "embedded", "version": "1"}}
    assert manifest.profile == "quick"


def test_parameters_arrive_in_this_very_python(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """The kernel is this environment's, in the notebook's folder, with the profile's parameters."""
    lab, _ = finished
    table = load_run(only_run(lab)).experiment("01_good").tables["facts"]
    assert table.rows == ((sys.prefix, str(lab / "notebooks"), 4),)
    assert read_manifest(only_run(lab)).parameters["01_good"] == {"repeats": 4}


def test_the_source_notebook_stays_as_it_is(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Outputs go into the copy in the run's folder only; it holds what the report printed."""
    lab, _ = finished
    source = json.loads((lab / "notebooks" / "15_report.ipynb").read_text())
    executed = json.loads((only_run(lab) / "15_report.ipynb").read_text())
    assert source["cells"][-1]["outputs"] == []
    assert executed["cells"][-1]["outputs"][0]["text"] in ("['01_good']\n", ["['01_good']\n"])


def test_the_report_can_be_written_again(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The latest run by default, a named one, another file; an unknown run exits with 2."""
    lab, _ = finished
    folder = only_run(lab)
    (folder / "report.html").unlink()
    assert ollamalab(lab, "report").stdout.strip() == f"results/{folder.name}/report.html"
    assert "Facts" in (folder / "report.html").read_text()
    ollamalab(lab, "report", folder.name, "--html", str(tmp_path / "x.html"))
    assert (tmp_path / "x.html").is_file()
    unknown = ollamalab(lab, "report", "yesterday")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("ollamalab: no run 'yesterday'")


def test_a_plan_is_shown_and_nothing_starts(tmp_path: Path) -> None:
    """--dry-run names notebooks, minutes and changed parameters; list names the questions."""
    add_notebook(tmp_path, "01_good", parameters="repeats: int = 3", question="How good?")
    shown = ollamalab(tmp_path, "run", "--dry-run", "-p", "repeats=5").stdout
    assert "01_good" in shown
    assert "repeats=5" in shown
    listed = ollamalab(tmp_path, "list").stdout
    assert "How good?" in listed
    assert not (tmp_path / "results").exists()


def test_a_plan_says_how_long_how_large_and_what_is_missing(tmp_path: Path) -> None:
    """Time beside its budget, models with how to get them, room on the disk, and that it is an estimate."""
    add_notebook(
        tmp_path,
        "02_cold_start",
        parameters='target: str = "embedded"\nmodel: str = "m"\npairs: int = 3',
        estimate_s="pairs * load_s",
    )
    budget = "# Budget: 90 min.\ntarget: ollama\nmodel: qwen2.5:7b\npairs: 600\n"
    add_parameters(tmp_path, "gpu", "02_cold_start", budget)
    environment = {
        **os.environ,
        "OLLAMA_MODELS": str(tmp_path / "models"),
        "PATH": "/nowhere",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        command(["run", "--profile", "gpu", "--dry-run"]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0
    assert "~1 h 03 min of 1 h 30 min" in done.stdout
    assert re.search(r"qwen2.5:7b +ollama +~4.3 GB +no: install Ollama, then ollama pull", done.stdout)
    assert f"about 4.3 GB of models to come into {tmp_path / 'models'}" in done.stdout
    assert "an estimate from assumed speeds" in done.stdout


def test_a_run_warns_of_a_server_that_has_a_model_loaded(tmp_path: Path) -> None:
    """The real run shows its plan and the evidence first, then runs all the same."""
    add_notebook(tmp_path, "01_good", "pass", parameters="repeats: int = 3")
    loaded = {"name": "llama3:8b", "size": 6_000_000_000, "expires_at": "2026-11-21T10:00:00.1Z"}
    with serving({"/api/ps": {"models": [loaded]}}) as url:
        done = subprocess.run(
            command(["run"]),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OLLAMA_HOST": url.removeprefix("http://"), "COLUMNS": "200"},
        )
    assert done.returncode == 0
    plan, warning, evidence, result = (
        done.stdout.index(words)
        for words in (
            "1 experiment, profile quick",
            "! this host serves already",
            f"{url} has loaded llama3:8b (6.0 GB, kept until 2026-11-21T10:00:00)",
            "1 done",
        )
    )
    assert plan < warning < evidence < result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "gpu"], "params/gpu/01_good.yaml: no parameter 'repaets'; did you mean 'repeats'?"),
        (["-p", "repeats=often"], "-p: repeats must be int, got 'often' (str)"),
        (["02_bad"], "no experiment '02_bad'"),
        (["--resume"], "no unfinished run"),
        (["--out", "notebooks/01_good.ipynb"], "cannot make a folder in notebooks/01_good.ipynb"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit status 2 before any notebook starts."""
    add_notebook(tmp_path, "01_good", parameters="repeats: int = 3")
    add_parameters(tmp_path, "gpu", "01_good", "repaets: 4\n")
    done = ollamalab(tmp_path, "run", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ollamalab: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def wait_for_line(fifo: Path, process: subprocess.Popen[str]) -> None:
    """Wait until something is written to a pipe, as long as its writer's starter lives."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while process.poll() is None:
            if select.select([reader], [], [], 1.0)[0] and os.read(reader, 100):
                return
        raise AssertionError(f"ended too early: {process.communicate()[0]}")
    finally:
        os.close(reader)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_a_run_that_was_cut_off_is_resumed(tmp_path: Path, signal_number: signal.Signals) -> None:
    """What is done stays readable and is not repeated; kernel and its servers end; Ctrl-C exits with 130."""
    add_notebook(tmp_path, "01_good", GOOD, parameters="repeats: int = 3")
    add_notebook(tmp_path, "02_waiting", WAITING)
    add_notebook(tmp_path, "15_report", REPORT)
    os.mkfifo(tmp_path / "notebooks" / "fifo")
    process = subprocess.Popen(
        command(["run"]), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        wait_for_line(tmp_path / "notebooks" / "fifo", process)
        kernel, server = (
            psutil.Process(int(pid)) for pid in (tmp_path / "notebooks" / "pids").read_text().split()
        )
        process.send_signal(signal_number)
        output = process.communicate()[0]
    folder = only_run(tmp_path)
    kernel.wait(timeout=60)
    assert load_run(folder).experiment("01_good").tables["facts"].rows[0][2] == 3
    manifest = read_manifest(folder)
    assert manifest.finished_utc is None
    assert manifest.experiments["01_good"] == "done"
    if signal_number == signal.SIGINT:
        server.wait(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in output
        assert (tmp_path / "notebooks" / "cleaned").exists()
        assert (folder / "report.html").is_file()
        assert manifest.experiments["02_waiting"] == "waiting"
    else:
        server.kill()
        (tmp_path / "notebooks" / "cleaned").touch()

    resumed = ollamalab(tmp_path, "run", "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert only_run(tmp_path) == folder
    assert set(read_manifest(folder).experiments.values()) == {"done"}
    assert (tmp_path / "notebooks" / "ran").read_text() == "x"
    assert not list(folder.glob(".*"))


def test_a_folder_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    """``report`` says what to do, in one line, and writes nothing."""
    add_notebook(tmp_path, "01_good")
    folder = tmp_path / "results" / "2026-11-21T034408Z"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"schema": 2}')
    done = ollamalab(tmp_path, "report")
    assert done.returncode == 2
    assert "newer ollamalab" in done.stderr
    assert "update ollamalab" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
