"""The server-sent events of the page: ticks, outcomes of actions, and price races."""

from __future__ import annotations

from typing import Literal

import msgspec

from app.page.control import State
from app.page.panels import Seen
from app.page.queries import Count
from app.page.traffic import Mode, SideReport

Stage = Literal["going", "done", "failed"]


class SideTick(msgspec.Struct, frozen=True):
    """One side in one tick; rates a second, milliseconds, None where nothing is known."""

    rate: float | None
    queries: float | None
    p50: float | None
    p99: float | None
    failed: int


class Tick(msgspec.Struct, frozen=True):
    """Half a second of the sale.

    Attributes:
        kinds: "l1", "store", "stale", "miss" -> answers a second.
        counted_by: what Postgres counts with; empty if it does not answer.
        why_not: action -> why it cannot be done now.
    """

    at: float
    mode: Mode
    is_compared: bool
    cached: SideTick
    uncached: SideTick
    kinds: dict[str, float]
    counted_by: str
    state: State
    why_not: dict[str, str]
    panels: tuple[Seen | None, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What an action resulted in; sent again with the same number as it goes on."""

    number: int
    at: float
    action: str
    stage: Stage
    text: str


class RaceState(msgspec.Struct):
    """A price change on its way to the panels; amounts in cents, `seen` in milliseconds after the commit."""

    number: int
    before: int
    amount: int
    seen: list[float | None]
    committed_at: float | None = None


class Message(msgspec.Struct, frozen=True):
    """One server-sent event."""

    event: str
    data: bytes


def side_tick(report: SideReport, took: float, before: Count | None, now: Count | None, name: str) -> SideTick:
    """Return a side's rates in its own time: the seconds for which it was asked."""
    seconds = report.seconds or took
    queries = None
    is_asked = name == "cached" or report.seconds > 0
    if before is not None and now is not None and before.source == now.source and is_asked:
        is_apart = now.source == "pg_stat_statements"
        queries = max(0, getattr(now, name) - getattr(before, name)) / seconds if is_apart or name == "cached" else None
    return SideTick(report.requests / seconds if is_asked else None, queries, report.p50, report.p99, report.failed)
