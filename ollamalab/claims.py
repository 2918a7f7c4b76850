"""The published claims that the lab settles: what was said, by whom, and the range it means.

Sources: S0 streaming-response optimisation, S1 performance guide, S2 staged optimisation report of
cLLM, S3 Langchain-Chatchat API latency, S4 concurrency and throughput.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One published claim.

    Attributes:
        id: "C01" to "C20".
        text: The claim in one line.
        source: "S0" to "S4".
        low: Lower end of the published ratio after/before; None if no number was published.
        high: Upper end; equal to ``low`` for a single number.
        at_least: The number is a lower bound of the effect: going further confirms it too.
        factual: Settled by observation instead of a measured ratio.
        experiment: Notebook that settles it.
    """

    id: str
    text: str
    source: str
    experiment: str
    low: float | None = None
    high: float | None = None
    at_least: bool = False
    factual: bool = False


_ALL = (
    Claim(
        id="C01",
        text="A repeated streaming request is 50–70 % faster with a cache",
        source="S0",
        experiment="05_response_cache",
        low=0.3,
        high=0.5,
        at_least=True,
    ),
    Claim(
        id="C02",
        text="A repeated non-streaming request is 60–80 % faster with a cache",
        source="S0",
        experiment="05_response_cache",
        low=0.2,
        high=0.4,
        at_least=True,
    ),
    Claim(
        id="C03",
        text="Batching 10 chunks lowers I/O and raises throughput",
        source="S0",
        experiment="06_stream_batching",
    ),
    Claim(
        id="C04",
        text="Warm-up cuts the first request by 84 % (190 → 30 s)",
        source="S1",
        experiment="02_cold_start",
        low=30 / 190,
        high=30 / 190,
        at_least=True,
    ),
    Claim(
        id="C05",
        text="The tuned settings halve a warm request (10 → 5 s)",
        source="S1",
        experiment="02_cold_start",
        low=0.5,
        high=0.5,
        at_least=True,
    ),
    Claim(
        id="C06",
        text="Tuning raises GPU utilisation from 60 to 85 %",
        source="S1",
        experiment="13_gpu_and_energy",
        low=85 / 60,
        high=85 / 60,
        at_least=True,
    ),
    Claim(
        id="C07",
        text="A ping every 6 hours keeps the model warm",
        source="S1",
        experiment="02_cold_start",
        factual=True,
    ),
    Claim(
        id="C08",
        text="OLLAMA_MAX_LOADED_MODELS=1 keeps the model resident",
        source="S1",
        experiment="12_server_settings",
        factual=True,
    ),
    Claim(
        id="C09",
        text="OLLAMA_GPU_OVERHEAD=2048 reserves 2 GB",
        source="S1",
        experiment="12_server_settings",
        factual=True,
    ),
    Claim(
        id="C10",
        text="Load time includes compiling CUDA kernels",
        source="S1",
        experiment="12_server_settings",
        factual=True,
    ),
    Claim(
        id="C11",
        text="q4 is faster with slightly lower quality, q8 in between",
        source="S1",
        experiment="11_quantisation",
    ),
    Claim(
        id="C12",
        text="More sequences (8 → 32) cut the mean response from 6.57 to 4.37 s",
        source="S2",
        experiment="07_parallel_slots",
        low=4.37 / 6.57,
        high=4.37 / 6.57,
        at_least=True,
    ),
    Claim(
        id="C13",
        text="Batch scheduling and asynchronous clean-up give 1.6 %",
        source="S2",
        experiment="14_faults_and_overload",
        low=0.984,
        high=0.984,
        at_least=True,
    ),
    Claim(
        id="C14",
        text="Ollama answers in 1.80 s on average, cLLM in 4.30 s",
        source="S2",
        experiment="07_parallel_slots",
        low=1.80 / 4.30,
        high=1.80 / 4.30,
        at_least=True,
    ),
    Claim(
        id="C15",
        text="A health check before each request delays the connection",
        source="S3",
        experiment="03_request_stages",
        factual=True,
    ),
    Claim(
        id="C16",
        text="Reusing connections removes the long connect",
        source="S3",
        experiment="04_connection_pool",
    ),
    Claim(
        id="C17",
        text="OLLAMA_NUM_PARALLEL only sets an internal batch size; requests are serial",
        source="S4",
        experiment="07_parallel_slots",
        factual=True,
    ),
    Claim(
        id="C18",
        text="A queue in front serves several clients fairly",
        source="S4",
        experiment="08_request_queue",
    ),
    Claim(
        id="C19",
        text="Several instances are the way past 1–5 requests/s",
        source="S4",
        experiment="09_cluster_routing",
    ),
    Claim(
        id="C20",
        text="A connection pool saves 10–50 ms per request, 10–30 %",
        source="S4",
        experiment="04_connection_pool",
        low=0.7,
        high=0.9,
    ),
)

#: Claim by its id, in order.
CLAIMS: dict[str, Claim] = {claim.id: claim for claim in _ALL}
