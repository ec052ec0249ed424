"""Makes dashboard.json, for Grafana's import: `python monitoring/dashboard.py > monitoring/dashboard.json`."""

from __future__ import annotations

import json
from typing import Any

P99 = "histogram_quantile(0.99, sum by (le{by}) (rate({metric}_bucket[$__rate_interval])))"
RATE = "sum by ({by}) (rate({metric}[$__rate_interval]))"


READS = "sum(rate(cacheworkers_reads_total{which}[$__rate_interval]))"
HITS = "1 - " + READS.replace("{which}", '{tier="load"}') + " / " + READS.replace("{which}", "")


def rate(metric: str, by: str) -> tuple[str, str]:
    """A query of a counter a second, and its legend."""
    return RATE.format(metric=metric, by=by), " ".join(f"{{{{{label}}}}}" for label in by.split(", "))


def p99(metric: str, by: str = "") -> tuple[str, str]:
    """A query of a histogram's 99th percentile, and its legend."""
    query = P99.replace("{by}", f", {by}" if by else "").replace("{metric}", metric)
    return query, f"{{{{{by}}}}}" if by else "p99"


#: Row -> panels: title, unit, what it says, queries with their legends.
ROWS: dict[str, list[tuple[str, str, str, list[tuple[str, str]]]]] = {
    "What readers get": [
        ("Reads by tier", "reqps", "l1 is this process's memory.", [rate("cacheworkers_reads_total", "tier")]),
        (
            "Reads by freshness",
            "reqps",
            "Stale reads are revalidated.",
            [rate("cacheworkers_reads_total", "freshness")],
        ),
        (
            "Hits",
            "percentunit",
            "Reads that did not wait for a load.",
            [(HITS, "hits")],
        ),
        ("Wait, p99", "s", "Reads that memory did not answer.", [p99("cacheworkers_read_wait_seconds", "loader")]),
        ("Reads that raise", "reqps", "", [rate("cacheworkers_read_failures_total", "loader, kind")]),
        ("Age served, p99", "s", "", [p99("cacheworkers_age_served_seconds", "loader")]),
    ],
    "Workers": [
        ("Queue length", "short", "", [("cacheworkers_queue_messages", "{{queue}}")]),
        ("Oldest message", "s", "Readers wait for cw.miss.", [("cacheworkers_queue_oldest_age_seconds", "{{queue}}")]),
        ("Loads", "ops", "What the database notices.", [rate("cacheworkers_load_seconds_count", "loader, outcome")]),
        ("Load time, p99", "s", "", [p99("cacheworkers_load_seconds", "loader")]),
        ("Calls published", "ops", "", [rate("cacheworkers_calls_published_total", "queue")]),
        (
            "What went wrong",
            "ops",
            "",
            [
                rate("cacheworkers_publish_failures_total", "queue"),
                rate("cacheworkers_messages_dropped_total", "reason"),
                (RATE.format(metric="cacheworkers_take_overs_total", by="loader"), "take-over {{loader}}"),
                (RATE.format(metric="cacheworkers_poisoned_total", by="loader"), "poisoned {{loader}}"),
            ],
        ),
    ],
    "Coherence": [
        ("Invalidations", "ops", "", [rate("cacheworkers_invalidations_total", "mode")]),
        ("Invalidated entries", "ops", "", [rate("cacheworkers_invalidated_entries_total", "mode")]),
        (
            "Invalidation to visible, p99",
            "s",
            "Acknowledged, then received by every process: their sum at most.",
            [
                (p99("cacheworkers_invalidation_seconds")[0], "acknowledged"),
                (p99("cacheworkers_listener_lag_seconds")[0], "received"),
            ],
        ),
        (
            "Outbox",
            "s",
            "Age of the oldest row that waits, and of what was delivered.",
            [
                ("cacheworkers_outbox_oldest_age_seconds", "waits"),
                (p99("cacheworkers_outbox_lag_seconds")[0], "delivered, p99"),
            ],
        ),
        (
            "Lost",
            "short",
            "1 while it is.",
            [("cacheworkers_store_lost", "store"), ("cacheworkers_listener_lost", "listener")],
        ),
        ("Answers", "short", "To the exporter.", [("cacheworkers_up", "{{server}}")]),
    ],
    "Memory and upkeep": [
        ("Entries in processes' memory", "short", "", [("cacheworkers_memory_entries", "entries")]),
        ("Bytes in processes' memory", "bytes", "", [("cacheworkers_memory_bytes", "bytes")]),
        (
            "Store memory",
            "bytes",
            "",
            [("cacheworkers_store_memory_bytes", "used"), ("cacheworkers_store_memory_max_bytes > 0", "maxmemory")],
        ),
        ("Heat", "short", "Reads lately.", [("cacheworkers_access_score", "{{loader}}")]),
        ("Warming", "ops", "", [rate("cacheworkers_warmed_total", "loader, outcome")]),
        ("Garbage collected", "ops", "", [rate("cacheworkers_gc_removed_total", "what")]),
        ("Upkeep", "s", "Since each task has ended well.", [("cacheworkers_upkeep_age_seconds", "{{task}}")]),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, content in ROWS.items():
        panels.append(
            {"type": "row", "title": row, "id": len(panels) + 1, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}
        )
        y += 1
        for at, (title, unit, says, queries) in enumerate(content):
            panels.append(
                {
                    "type": "timeseries",
                    "title": title,
                    "description": says,
                    "id": len(panels) + 1,
                    "gridPos": {"x": at % 3 * 8, "y": y + at // 3 * 7, "w": 8, "h": 7},
                    "datasource": {"type": "prometheus", "uid": "${source}"},
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "targets": [
                        {"refId": chr(65 + n), "expr": query, "legendFormat": legend}
                        for n, (query, legend) in enumerate(queries)
                    ],
                }
            )
        y += (len(content) + 2) // 3 * 7
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "title": "cacheworkers",
        "uid": "cacheworkers",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
