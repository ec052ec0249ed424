"""Prints an explanation of a call as text: one line for memory, store, each tag, lease, failure and reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

import click

from cacheworkers.flows.explain import Explanation
from cacheworkers.ops.output import counted

#: Seconds -> word, largest first.
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def print_explanation(found: Explanation) -> None:
    """Print an explanation."""
    click.echo(f"{found.call}: {click.style(found.verdict, bold=True)}")
    for name, says in lines(found):
        click.echo(f"  {click.style(name.ljust(13), dim=True)}{says}")


def lines(found: Explanation) -> Iterator[tuple[str, str]]:
    """Yield what there is to say, each under its name."""
    yield "memory", _memory(found)
    if found.age is None:
        yield "store", found.problem or "nothing"
        if found.fresh_for is not None:  # another release's
            yield "fresh", f"until {_instant(found, found.fresh_for)}"
    else:
        yield from _stored(found)
    for tag in found.tags:
        yield "tag", f"{tag.tag}, {_invalidated(found, tag.ago)}"
    if found.more_tags:
        yield "tag", f"and {found.more_tags:,} more than `max_tags`"
    yield "lease", _lease(found)
    yield "failure", _failure(found)
    yield "workers", _workers(found)
    yield "reads", _reads(found)


def duration_text(seconds: float) -> str:
    """Return how long something is, in two units at most: `4 min 57 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts = []
    for size, unit in _UNITS:
        if whole >= size:
            parts.append(f"{whole // size} {unit}")
            whole %= size
        elif parts:
            break
    return " ".join(parts[:2])


def _memory(found: Explanation) -> str:
    if found.in_l1:
        return f"this process has it, and has served it {counted(found.l1_reads, 'time', 'times')}"
    return "this process does not have it; each process has its own memory"


def _reads(found: Explanation) -> str:
    count = round(found.access_score)
    if not count:
        return "none lately; processes report theirs every few seconds"
    return f"about {count:,} lately, by all processes"


def _workers(found: Explanation) -> str:
    if not found.has_workers:
        return "none: without a Celery app, or in tests, loads run in the process that reads"
    if found.workers_seen is None:
        return f"none seen to load from {found.miss_queue} in ten minutes; `cacheworkers doctor` says what they lack"
    return f"last seen to take {found.miss_queue} {duration_text(found.workers_seen)} ago; they say so once a minute"


def _stored(found: Explanation) -> Iterator[tuple[str, str]]:
    age, load_time = found.age or 0.0, found.load_time or 0.0
    yield "store", f"{found.freshness}, {counted(found.size, 'byte', 'bytes')} of JSON"
    yield "loaded", f"{_instant(found, -age)}; that took {duration_text(load_time)}"
    for name, left in (("fresh", found.fresh_for), ("stale", found.stale_for), ("kept", found.kept_for)):
        left = left or 0.0
        until = f"until {_instant(found, left)}" if math.isfinite(left) else "for ever"
        if name == "fresh" and found.jitter and math.isfinite(left):
            until += f"; `jitter` has taken up to {found.jitter:.0%} of fresh_for"
        yield name, until
    yield "revalidated", _revalidated(found)


def _revalidated(found: Explanation) -> str:
    if found.lease:
        return "now, by the lease's holder"
    left = found.revalidates_in
    if not left and float(found.failure.get("until_ms", 0)) / 1000 > found.at:
        return "by nobody before the failure's backoff ends"
    if not left:
        return "by the next reader, or by warming"
    if not math.isfinite(left):
        return "never, unless it is invalidated"
    return f"by a reader, or by warming, from {_instant(found, left)}"


def _invalidated(found: Explanation, ago: float | None) -> str:
    if ago is None:
        return "not invalidated lately"
    is_after = found.age is not None and ago < found.age
    return f"last invalidated {_instant(found, -ago)}" + (", after this was loaded" if is_after else "")


def _lease(found: Explanation) -> str:
    if not found.lease:
        return f"nobody's; loads that have begun and not ended: {found.attempts}" if found.attempts else "nobody's"
    token = found.lease.get("token", "?")
    if found.lease.get("fence"):
        ends = _instant(found, float(found.lease.get("left_ms", 0)) / 1000)
        return f"held by {token}, whose load has begun; attempt {found.attempts}; if its process has died, until {ends}"
    return f"held by {token}, whose load has not begun"


def _failure(found: Explanation) -> str:
    if not found.failure:
        return "none"
    fails = found.failure
    left = float(fails.get("until_ms", 0)) / 1000 - found.at
    again = f"nobody loads it for another {duration_text(left)}" if left > 0 else "its backoff is over"
    # Some exceptions have no text.
    last = ": ".join(filter(None, (fails.get("kind", "?"), fails.get("text", "").partition("\n")[0])))
    return f"{fails.get('count', '?')} in a row, the last {last}; {again}"


def _instant(found: Explanation, away: float) -> str:
    """Return a local instant, and how far from now it is."""
    at = datetime.fromtimestamp(found.at + away).astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}, " + (f"in {duration_text(away)}" if away > 0 else f"{duration_text(-away)} ago")
