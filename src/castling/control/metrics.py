"""Figures of the groups in Prometheus' text form. Pure: report trees in, text out.

An unknown figure has no sample, never a zero: alert on its absence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

__all__ = ["END_METRICS", "STREAM_METRICS", "Figure", "render"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """`read`: the figure in a stream's (or an end's) view; None when it is not known."""

    name: str
    help: str
    read: Callable[[Json], float | None]
    counter: bool = False


def _at(*path: str) -> Callable[[Json], float | None]:
    def read(view: Json) -> float | None:
        found: Any = view
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return float(found) if is_number else None

    return read


def _oldest_hold(view: Json) -> float | None:
    holds = view.get("holds")
    return None if holds is None else max((float(hold["age_s"]) for hold in holds), default=0.0)


STREAM_METRICS = (
    Figure(
        "castling_rpo_seconds", "Age of the oldest commit that is not hardened on the backup.", _at("rpo_s")
    ),
    Figure(
        "castling_apply_lag_seconds",
        "Age of the oldest hardened commit that is not applied.",
        _at("apply_lag_s"),
    ),
    Figure(
        "castling_warnings",
        "What leaves something unprotected, or will stop the stream, without stopping it now.",
        lambda view: float(len(view.get("warnings") or ())),
    ),
    Figure(
        "castling_holds",
        "Parts (tables) of the target that stand still while the rest goes on.",
        lambda view: None if view.get("holds") is None else float(len(view["holds"])),
    ),
    Figure(
        "castling_oldest_hold_seconds",
        "How long the oldest of them has been standing; 0 when there is none.",
        _oldest_hold,
    ),
    Figure(
        "castling_foreign_writes",
        "Transactions of others that wrote on the target's tables and that nobody has acknowledged.",
        _at("foreign_writes", "open"),
    ),
    Figure(
        "castling_audit_age_seconds",
        "Time since the part was compared that was compared longest ago; none while one never was.",
        _at("audit", "full_age_s"),
    ),
    Figure(
        "castling_audit_findings",
        "Findings of audits that are open; none while nothing was ever audited.",
        _at("audit", "open"),
    ),
    Figure(
        "castling_stream_running",
        "1 when every end of the stream runs, else 0.",
        lambda view: float(view["state"] == "running"),
    ),
    Figure(
        "castling_link_up", "1 when the link is up, else 0.", lambda view: float(view.get("link") == "up")
    ),
    Figure("castling_seed_rows", "Rows copied by the first copy.", _at("seed", "rows")),
    Figure("castling_seed_bytes", "Bytes copied by the first copy.", _at("seed", "bytes")),
)
END_METRICS = (
    Figure(
        "castling_end_running",
        "1 when the end's process runs and says so, else 0.",
        lambda view: float(view["state"] in ("running", "seeding", "waiting")),
    ),
    Figure(
        "castling_end_restarts",
        "Times the agent started the end anew since the agent started.",
        _at("restarts"),
        True,
    ),
    Figure("castling_journal_bytes", "Size of the journal on disk.", _at("journal", "bytes")),
    Figure("castling_journal_free_bytes", "Free bytes on the journal's disk.", _at("journal", "free_bytes")),
    Figure(
        "castling_journal_full_in_seconds",
        "Forecast until the journal's disk is full at the present rate.",
        _at("journal", "full_in_s"),
    ),
    Figure("castling_link_rtt_seconds", "Round trip between the nodes.", _at("link", "rtt_s")),
    Figure("castling_link_wire_bytes", "Bytes sent on the wire.", _at("link", "wire_bytes"), True),
    Figure(
        "castling_source_wal_behind_bytes",
        "WAL that the source has written and the capture has not taken.",
        _at("capture", "wal_behind_bytes"),
    ),
    Figure(
        "castling_source_wal_retained_bytes",
        "WAL that the source keeps for the slot, what open transactions pin included.",
        _at("capture", "wal", "retained_bytes"),
    ),
    Figure(
        "castling_source_wal_lasts_seconds",
        "Forecast until the server takes the slot's WAL away (max_slot_wal_keep_size) at the present rate.",
        _at("capture", "wal", "lasts_s"),
    ),
    Figure(
        "castling_source_wal_waiting_bytes",
        "WAL that the source keeps because the backup, or the spool, has not taken it.",
        _at("capture", "wal", "waiting_bytes"),
    ),
    Figure(
        "castling_source_wal_limit_in_seconds",
        "Forecast until the slot is given up (wal_limit) at the present rate.",
        _at("capture", "wal", "limit_in_s"),
    ),
    Figure(
        "castling_source_wal_disk_free_bytes",
        "Free bytes on the disk of the source's WAL, where the capture runs on the source's machine.",
        _at("capture", "wal", "disk_free_bytes"),
    ),
    Figure(
        "castling_source_wal_disk_full_in_seconds",
        "Forecast until that disk is full at the rate at which the slot's WAL grows.",
        _at("capture", "wal", "disk_full_in_s"),
    ),
    Figure("castling_spool_bytes", "Size of the spool on disk.", _at("spool", "bytes")),
    Figure(
        "castling_spool_full_in_seconds",
        "Forecast until the spool takes nothing more at the present rate.",
        _at("spool", "full_in_s"),
    ),
    Figure(
        "castling_backup_given_up",
        "1 while the source's log has been let go (wal_limit) and the backup needs a new copy.",
        lambda view: None if view.get("state") is None else float(_is_given_up(view)),
    ),
    Figure(
        "castling_source_oldest_transaction_seconds",
        "Age of the oldest transaction on the source that has written and is open.",
        _at("capture", "wal", "oldest_transaction_s"),
    ),
)


def _is_given_up(view: Json) -> bool:
    return view["state"] == "given-up" or (view.get("error") or {}).get("code") == "log-given-up"


class _Fixed:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def render(trees: list[Json]) -> bytes:
    """The text for a scrape."""
    metrics: list[Metric] = []
    for figure in STREAM_METRICS:
        views = [((tree["group"], s["backup"]), s) for tree in trees for s in tree["streams"]]
        metrics.append(_family(figure, ["group", "backup"], views))
    for figure in END_METRICS:
        inner = [
            ((tree["group"], s["backup"], end), view)
            for tree in trees
            for s in tree["streams"]
            for end, view in s["ends"].items()
        ]
        metrics.append(_family(figure, ["group", "backup", "end"], inner))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(metrics))
    return generate_latest(registry)


def _family(figure: Figure, labels: list[str], views: Sequence[tuple[tuple[str, ...], Json]]) -> Metric:
    family = (CounterMetricFamily if figure.counter else GaugeMetricFamily)(
        figure.name, figure.help, labels=labels
    )
    for values, view in views:
        value = figure.read(view)
        if value is not None:
            family.add_metric(list(values), value)
    return family
