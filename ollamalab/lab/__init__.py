"""What a notebook's first cells import: open a target, run arms, show tables.

- ``experiment``: the ``Lab`` of a notebook, with its report
- ``subject``: a server and a model under test
- ``trials``: visits in blocks, and their contrasts
- ``cold``, ``watching``, ``observation``, ``calibration``: what single notebooks measure
- ``frames``, ``tables``, ``overview``, ``sentences``: what is shown
"""

from ollamalab.lab.calibration import InstrumentCheck, check_instrument
from ollamalab.lab.cold import (
    FRESH,
    FROM_DISK,
    PRELOADED,
    UNLOADED,
    WARM,
    ColdStart,
    as_starts,
    compare_reloaded,
    fresh_starts,
    launch_fresh,
    launch_spread,
    stage_medians,
    starts_from_disk,
)
from ollamalab.lab.experiment import AS_IT_IS, Lab
from ollamalab.lab.frames import (
    concurrency,
    most_at_once,
    most_busy,
    one_visit,
    series,
    sweep_points,
    timeline,
    values,
)
from ollamalab.lab.models import have_models, is_ours, model_file
from ollamalab.lab.observation import Observation, observe_decoding, observe_eviction, observe_pings
from ollamalab.lab.overview import (
    findings_table,
    machine_table,
    manifest_table,
    shown_run,
    throughput_row,
    throughput_sentence,
)
from ollamalab.lab.sentences import (
    Said,
    carry_over_note,
    decoding_title,
    knee_title,
    listed,
    offered_sentence,
    ping_sentence,
    plural,
    preload_sentence,
    preload_title,
    slots_sentence,
    spread_note,
    stages_title,
    tuning_sentence,
)
from ollamalab.lab.subject import PromptShape, Subject, preload
from ollamalab.lab.tables import comparison_table, gap_table, latency_table, staged_table, stages_table
from ollamalab.lab.trials import Trials, best_arm, mean_of
from ollamalab.lab.watching import Residency, default_keep_alive_s, watch_pings
from ollamalab.report import root

__all__ = [
    "AS_IT_IS",
    "FRESH",
    "FROM_DISK",
    "PRELOADED",
    "UNLOADED",
    "WARM",
    "ColdStart",
    "InstrumentCheck",
    "Lab",
    "Observation",
    "PromptShape",
    "Residency",
    "Said",
    "Subject",
    "Trials",
    "as_starts",
    "best_arm",
    "carry_over_note",
    "check_instrument",
    "compare_reloaded",
    "comparison_table",
    "concurrency",
    "decoding_title",
    "default_keep_alive_s",
    "findings_table",
    "fresh_starts",
    "gap_table",
    "have_models",
    "is_ours",
    "knee_title",
    "latency_table",
    "launch_fresh",
    "launch_spread",
    "listed",
    "machine_table",
    "manifest_table",
    "mean_of",
    "model_file",
    "most_at_once",
    "most_busy",
    "observe_decoding",
    "observe_eviction",
    "observe_pings",
    "offered_sentence",
    "one_visit",
    "ping_sentence",
    "plural",
    "preload",
    "preload_sentence",
    "preload_title",
    "root",
    "series",
    "shown_run",
    "slots_sentence",
    "spread_note",
    "stage_medians",
    "staged_table",
    "stages_table",
    "stages_title",
    "starts_from_disk",
    "sweep_points",
    "throughput_row",
    "throughput_sentence",
    "timeline",
    "tuning_sentence",
    "values",
    "watch_pings",
]
