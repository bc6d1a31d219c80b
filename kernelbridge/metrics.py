"""The metrics of a server, for Prometheus: one table of them, each in a registry object of its own server.

Labels have few, fixed values. Nothing that a client chooses becomes one: no user, session, host, path or image. So no
client can make series.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kernelbridge import __version__

PREFIX = "kernelbridge"
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Buckets in seconds for what should take milliseconds."""
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets in seconds for starts."""

Phase = Literal["queue", "create", "boot", "kernel"]
"""Of the start of a session: it waits for its turn, a sandbox is created, that boots, and a kernel starts in it."""
PHASES: tuple[Phase, ...] = get_args(Phase)
Result = Literal["ok", "failed", "refused"]
"""Of a cell or command: it succeeded; it failed or was ended; an `error` was its answer."""
EgressOutcome = Literal["allowed", "denied", "failed"]
EGRESS_OUTCOMES: tuple[EgressOutcome, ...] = get_args(EgressOutcome)
DiskResource = Literal["size", "files"]
DISK_RESOURCES: tuple[DiskResource, ...] = get_args(DiskResource)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The current values."""

    sessions: Mapping[str, int] = field(default_factory=dict)
    """Open sessions by the state of their sandbox; all states, also those of no session."""
    starts_waiting: int = 0
    connections: int = 0
    buffered: int = 0
    """Bytes that the server holds for all clients, …"""
    buffered_limit: int = 0
    """… and that it may hold."""


class Metrics:
    """Counts what happens. Each call costs a few microseconds; only those that say so may come from any thread."""

    def __init__(self, runtime: str = "") -> None:
        """Begin at zero; `runtime` is the name of the runtime."""
        self.registry = registry = CollectorRegistry()
        self._now = _Now(runtime)
        registry.register(self._now)
        ProcessCollector(namespace=PREFIX, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        self._phases = Histogram(
            f"{PREFIX}_start_phase_seconds",
            "Duration of one phase of the start of a session.",
            ("phase",),
            buckets=SLOW,
            registry=registry,
        )
        self._failed_starts = counter("start_failures", "Starts of a session that failed, by phase.", "phase")
        self._cells = counter("cells", "Cells that were answered, by result and cause.", "result", "cause")
        self._commands = counter("commands", "Terminal commands that were answered.", "result", "cause")
        self._refusals = counter("refusals", "Requests and connections that were refused, by error code.", "code")
        self._output = counter("output_bytes", "Bytes of messages that were written to clients.")
        self._egress = counter("egress_connections", "Connections that programs in sandboxes asked for.", "outcome")
        self._egress_bytes = counter("egress_bytes", "Bytes that programs in sandboxes exchanged.", "direction")
        self._disk_limits = counter("disk_limit_reached", "How often a session reached its disk limit.", "resource")
        self._authentications = counter("authentications", "Credentials that were checked.", "outcome")
        self._audit_lost = counter("audit_lines_lost", "Lines that are missing in the audit log.")
        self._lag = Histogram(
            f"{PREFIX}_event_loop_lag_seconds",
            "How late the event loop runs a timer.",
            buckets=FAST,
            registry=registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Make the series of each known label, so that its first event is an increase."""
        for phase in PHASES:
            self._phases.labels(phase)
            self._failed_starts.labels(phase)
        for counter in (self._cells, self._commands):
            counter.labels("ok", "none")
            counter.labels("failed", "none")
        for outcome in EGRESS_OUTCOMES:
            self._egress.labels(outcome)
        for direction in ("sent", "received"):
            self._egress_bytes.labels(direction)
        for resource in DISK_RESOURCES:
            self._disk_limits.labels(resource)
        for checked in ("accepted", "refused"):
            self._authentications.labels(checked)

    def watch(self, look: Callable[[], Snapshot]) -> None:
        """Call `look` at each scrape."""
        self._now.look = look

    # -- sessions ---------------------------------------------------------------------

    def phase(self, phase: Phase, seconds: float) -> None:
        """Note how long a phase of a start took."""
        self._phases.labels(phase).observe(seconds)

    @contextlib.contextmanager
    def timed(self, phase: Phase) -> Iterator[Callable[[Phase, float], None]]:
        """Measure a phase of a start. One that ends with an error counts as a failure.

        What this yields gives the last seconds of the phase to another one.
        """
        began = time.perf_counter()
        others: list[tuple[Phase, float]] = []
        try:
            yield lambda other, seconds: others.append((other, seconds))
        except Exception:
            self._failed_starts.labels(phase).inc()
            raise
        self.phase(phase, time.perf_counter() - began - sum(seconds for _, seconds in others))
        for other, seconds in others:
            self.phase(other, seconds)

    def cell_ended(self, result: Result, cause: str | None) -> None:
        """Count a cell that was answered; `cause` is one of the protocol's, or the code of an error."""
        self._cells.labels(result, cause or "none").inc()

    def command_ended(self, result: Result, cause: str | None) -> None:
        """Count a terminal command that was answered."""
        self._commands.labels(result, cause or "none").inc()

    def refused(self, code: str) -> None:
        """Count a request or connection that was refused; `code` is that of an error."""
        self._refusals.labels(code).inc()

    def wrote(self, size: int) -> None:
        """Count the bytes of a message to a client."""
        self._output.inc(size)

    # -- what other parts report ---------------------------------------------------------

    def egress_connection(self, outcome: EgressOutcome) -> None:
        """Count a connection that a program in a sandbox has asked for."""
        self._egress.labels(outcome).inc()

    def egress_bytes(self, *, sent: int, received: int) -> None:
        """Count the bytes of such a connection."""
        self._egress_bytes.labels("sent").inc(sent)
        self._egress_bytes.labels("received").inc(received)

    def disk_limit_reached(self, resource: DiskResource) -> None:
        """Count that a session reached its disk limit: that of its bytes, or of its files."""
        self._disk_limits.labels(resource).inc()

    def authentication(self, *, accepted: bool) -> None:
        """Count a credential that was checked."""
        self._authentications.labels("accepted" if accepted else "refused").inc()

    def audit_lost(self, lines: int) -> None:
        """Count lines that are missing in the audit log. Thread-safe."""
        self._audit_lost.inc(lines)

    def lagged(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._lag.observe(seconds)


class _Now(Collector):
    """The gauges: they are read when Prometheus asks."""

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        self.look: Callable[[], Snapshot] = Snapshot

    def collect(self) -> Iterator[Metric]:
        """Return all gauges."""
        now = self.look()
        build = _gauge("build_info", "Version of the server.", "version", "python", "runtime")
        build.add_metric((__version__, platform.python_version(), self._runtime), 1)
        yield build
        sessions = _gauge("sessions", "Open sessions, by the state of their sandbox.", "state")
        for state, count in now.sessions.items():
            sessions.add_metric((state,), count)
        yield sessions
        for name, text, value in (
            ("starts_waiting", "Sandboxes that wait for their turn to start.", now.starts_waiting),
            ("connections", "Open WebSockets.", now.connections),
            ("buffered_bytes", "Bytes that the server holds for all clients.", now.buffered),
            ("buffered_limit_bytes", "Bytes that it may hold for all clients.", now.buffered_limit),
        ):
            gauge = _gauge(name, text)
            gauge.add_metric((), value)
            yield gauge


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
