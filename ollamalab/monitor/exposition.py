"""The monitor's page of Prometheus text: what it shows, for a remote run or a Prometheus to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ollamalab import __version__
from ollamalab.gpu import EXPOSED
from ollamalab.gpu.values import COUNTERS
from ollamalab.monitor.board import Board, GpuState, fresh
from ollamalab.monitor.server_state import ServerState

Page = tuple[str, bytes]
"""Content type and body."""


class Exposition:
    """Renders the page.

    Args:
        take: Gives the board.
    """

    def __init__(self, take: Callable[[], Board]) -> None:
        self._take = take
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def page(self) -> Page:
        """Return content type and body."""
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Give every metric; what cannot be told has no sample, and a GPU that is silent none at all."""
        board = self._take()
        yield _gauge(
            "ollamalab_monitor_info", "Version of the monitor; always 1.", ["version"], {(__version__,): 1}
        )
        yield _gauge("ollamalab_monitor_cpu_ratio", "Of one core, by itself.", [], {(): board.cpu_ratio})
        yield from _gpus(fresh(board))
        for name in ("cpu_ratio", "memory_used_bytes", "memory_available_bytes"):
            yield _gauge(f"ollamalab_host_{name}", "Of the whole machine.", [], {(): board.host.get(name)})
        if board.server is not None:
            yield from _server(board.server)


def _gpus(gpus: Mapping[str, GpuState]) -> Iterator[Metric]:
    for name, (metric, factor) in EXPOSED.items():
        samples = {
            (source, gpu.name): value * factor
            for source, gpu in gpus.items()
            if (value := gpu.values.get(name)) is not None
        }
        if samples:
            kind = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
            family = kind(metric.removesuffix("_total"), f"{name} of a GPU.", labels=["gpu", "name"])
            for labels, value in samples.items():
                family.add_metric(list(labels), value)
            yield family


def _server(server: ServerState) -> Iterator[Metric]:
    yield _gauge(
        "ollamalab_server_up", "Whether the watched server answers.", [], {(): server.trouble is None}
    )
    yield _gauge(
        "ollamalab_server_model_bytes",
        "Memory of a model that is loaded.",
        ["model"],
        {(model.name,): model.size_bytes for model in server.models},
    )
    yield _gauge(
        "ollamalab_server_model_expires_seconds",
        "When it will be unloaded, since 1970 by the server's clock.",
        ["model"],
        {(model.name,): model.expires_unix_s for model in server.models},
    )
    for name, text, value in (
        ("slots", "Places for requests.", server.slots),
        ("busy", "Places in use.", server.busy),
        ("waiting", "Requests that wait for one.", server.waiting),
        ("tokens_per_second", "Output.", None if server.tokens_are_of_one else server.tokens_per_s),
    ):
        yield _gauge(f"ollamalab_server_{name}", text, [], {(): value})


def _gauge(
    name: str, text: str, labels: list[str], samples: Mapping[tuple[str, ...], float | None]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples.items():
        if number is not None:
            family.add_metric(list(values), number)
    return family
