"""What a metric of the exporters is, and the metrics that a site serves of itself.

Names follow Prometheus' conventions: base units in the name, `_total` for counters.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from federation.errors import FederationError, one_line

__all__ = ["SITE_METRICS", "MetricSpec", "Samples", "counter", "gauge", "serve_collector"]


@dataclass(frozen=True)
class MetricSpec:
    """One metric; a counter's name ends in `_total`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: str = "gauge"  # or "counter"


def gauge(name: str, text: str, *labels: str) -> MetricSpec:
    """Return the gauge `federation_<name>`."""
    return MetricSpec(f"federation_{name}", text, labels)


def counter(name: str, text: str, *labels: str) -> MetricSpec:
    """Return the counter `federation_<name>_total`."""
    return MetricSpec(f"federation_{name}_total", text, labels, "counter")


SITE_METRICS = (
    gauge("site_round", "Round the site is training or trained last", "node"),
    gauge("site_local_step", "Optimizer steps done in that round", "node"),
    gauge("site_local_steps", "Optimizer steps of that round", "node"),
    gauge("site_policy_loss", "Policy loss of the newest step", "node"),
    gauge("site_progress_timestamp_seconds", "When the newest step was written down", "node"),
    gauge("site_gpu_utilisation_ratio", "Share of time the GPU computed, by nvidia-smi, newest", "node"),
    gauge("site_gpu_memory_used_bytes", "Memory of the GPU in use by all programs, newest", "node"),
    gauge("site_gpu_temperature_celsius", "Temperature of the GPU, newest", "node"),
    gauge("site_scratch_free_bytes", "Free space of the site's scratch folder", "node"),
)


def serve_collector(collector: Collector, host: str, port: int) -> None:
    """Begin to serve the metrics of `collector` and of this process at /metrics, without TLS.

    Raises:
        FederationError: `port` cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        raise FederationError(f"port {port} cannot be listened on ({one_line(error)})") from None


class Samples:
    """The samples of one scrape, gathered by metric; a metric that is not in the catalogue is refused."""

    def __init__(self, catalogue: Iterable[MetricSpec]) -> None:
        self._specs = {spec.name.removesuffix("_total"): spec for spec in catalogue}
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add one sample of the metric `federation_<name>`; raises `KeyError` for a name or label unknown."""
        spec = self._specs[f"federation_{name}"]
        family = self._families.get(spec.name)
        if family is None:
            kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            family = self._families[spec.name] = kind(spec.name, spec.help, labels=spec.labels)
        family.add_metric([labels[label] for label in spec.labels], value)

    def families(self) -> Iterator[Metric]:
        """Yield each metric with its samples, as a Prometheus collector does."""
        yield from self._families.values()
