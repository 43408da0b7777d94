"""Prometheus metrics of one server; no label holds anything that a client wrote."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = tuple(2**power for power in range(6, 18))
DOCUMENTS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Measures:
    """Counters and histograms in a registry of their own, so that several servers can run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"reranker_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.requests = Counter(
            "reranker_requests", "Requests by route and HTTP status", ["route", "status"], registry=self.registry
        )
        self.seconds = histogram("request_seconds", "From the first byte to the answer", SECONDS, "route")
        self.queue_seconds = histogram("queue_seconds", "From the body to the first computed pair", SECONDS)
        self.documents = histogram("request_documents", "Documents of a request", DOCUMENTS)
        self.tokens = Counter("reranker_tokens", "Tokens of computed pairs, without padding", registry=self.registry)
        self.batch_seconds = histogram("batch_seconds", "Computing one batch", SECONDS)
        self.batch_tokens = histogram("batch_tokens", "Tokens of one batch, without padding", TOKENS)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Show the number of documents that wait whenever the metrics are read."""
        gauge = Gauge("reranker_waiting_documents", "Accepted and not yet answered", registry=self.registry)
        gauge.set_function(waiting)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
