"""Reads and writes ``results/``: run folders, tables, figures, and the HTML report.

Everything that is shown, in a notebook or in the report, is read back from what was saved.
"""

from ollamalab.report.advice import Recommendation, recommend, recommendations_table
from ollamalab.report.claims import Judged, claims_table, judge_run
from ollamalab.report.entries import SCHEMA, Advice, Arm, Contrast, ExperimentFile, Figure
from ollamalab.report.folders import (
    RUN_VARIABLE,
    current_folder,
    find_run,
    new_run_folder,
    root,
    run_folders,
    shown_folder,
)
from ollamalab.report.html import write_report
from ollamalab.report.manifest import commit_of, new_manifest, read_manifest, utc_now, write_manifest
from ollamalab.report.published import (
    before_after_table,
    gaps_table,
    runs_beside,
    stages_table,
    throughput_table,
)
from ollamalab.report.runs import Experiment, Run, load_experiment, load_run
from ollamalab.report.saving import Report
from ollamalab.report.tables import Column, Table

__all__ = [
    "RUN_VARIABLE",
    "SCHEMA",
    "Advice",
    "Arm",
    "Column",
    "Contrast",
    "Experiment",
    "ExperimentFile",
    "Figure",
    "Judged",
    "Recommendation",
    "Report",
    "Run",
    "Table",
    "before_after_table",
    "claims_table",
    "commit_of",
    "current_folder",
    "find_run",
    "gaps_table",
    "judge_run",
    "load_experiment",
    "load_run",
    "new_manifest",
    "new_run_folder",
    "read_manifest",
    "recommend",
    "recommendations_table",
    "root",
    "run_folders",
    "runs_beside",
    "shown_folder",
    "stages_table",
    "throughput_table",
    "utc_now",
    "write_manifest",
    "write_report",
]
