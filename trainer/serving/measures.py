"""Prometheus metrics of one server; no label contains text from a client."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = tuple(2**power for power in range(6, 18))
DOCUMENTS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Measures:
    """Counters and histograms with their own registry, so that several servers can run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.is_stopping: Callable[[], bool] = lambda: False  # whether the server was told to stop
        self.unfinished = 0  # accepted requests that were refused because the server stopped

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"reranker_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.requests = Counter(
            "reranker_requests", "Requests by route and HTTP status", ["route", "status"], registry=self.registry
        )
        self.seconds = histogram(
            "request_seconds", "Seconds from the first byte of a request to its response", SECONDS, "route"
        )
        self.queue_seconds = histogram(
            "queue_seconds", "Seconds from receiving a body to computing its first pair", SECONDS
        )
        self.documents = histogram("request_documents", "Documents in a request", DOCUMENTS)
        self.tokens = Counter("reranker_tokens", "Tokens of scored pairs, without padding", registry=self.registry)
        self.batch_seconds = histogram("batch_seconds", "Seconds of computing one batch", SECONDS)
        self.batch_tokens = histogram("batch_tokens", "Tokens in one batch, without padding", TOKENS)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Add a gauge of waiting documents, which calls `waiting` when the metrics are read."""
        gauge = Gauge(
            "reranker_waiting_documents",
            "Documents in accepted requests that are not answered yet",
            registry=self.registry,
        )
        gauge.set_function(waiting)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
