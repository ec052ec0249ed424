"""Reload: a soft invalidation, and a revalidation of those of its members that are hot; the rest is left to readers.

A tag may have a million members: what is asked for at once is bounded by what is hot, `warm_max_calls` of each loader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cacheworkers.core.driver import Flow
from cacheworkers.flows.invalidate import Invalidation, Progress, invalidate_tags
from cacheworkers.flows.ports import LoaderSpec, Ports
from cacheworkers.flows.warm import hot, warm


def reload_tags(
    ports: Ports, loaders: Mapping[str, LoaderSpec], tags: Sequence[str], progress: Progress | None = None
) -> Flow[Invalidation]:
    """Make everything that has any of the tags stale, and have workers load the hot of it anew.

    Args:
        progress: as for `invalidate_tags`.

    Raises:
        InvalidationIncomplete: the store failed on the way; nothing is acknowledged.
    """
    done = yield from invalidate_tags(ports, tags, "soft", progress)
    for loader in list(loaders.values()):
        found = yield from hot(ports, loader, ports.config.warm_max_calls)
        calls = [call for call, _ in found]
        members: set[str] = set()
        for tag in tags:
            members.update((yield ports.store.members(tag, calls)))
        yield from warm(ports, loader, [call for call in calls if call in members], lead=0.0)
    return done


def count_entries(ports: Ports, tags: Sequence[str]) -> Flow[Invalidation]:
    """Return how many members the tags' sets have, each tag by itself; nothing is invalidated, and the number is 0."""
    entries = 0
    for tag in tags:
        entries += yield ports.store.tag_size(tag)
    return Invalidation(0, entries)
