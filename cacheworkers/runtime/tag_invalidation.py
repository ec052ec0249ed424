"""Invalidation by tags as users ask for it: checked, and then counted, carried out, or followed by a reload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cacheworkers.core.driver import Flow
from cacheworkers.core.tag_templates import check_tag
from cacheworkers.errors import CallError, ConfigError
from cacheworkers.flows.invalidate import Invalidation, Mode, count_entries, invalidate_tags
from cacheworkers.flows.keep_warm import reload_tags
from cacheworkers.flows.ports import LoaderSpec, Ports
from cacheworkers.sql.watch.dirty_transactions import has_dirty_session


def tag_invalidation(
    ports: Ports,
    loaders: Mapping[str, LoaderSpec],
    tags: Sequence[str],
    mode: Mode,
    *,
    dry_run: bool,
) -> Flow[Invalidation]:
    """Return the flow that invalidates tags, or with `dry_run` counts their entries.

    Raises:
        ConfigError: there is no such mode.
        CallError: there is no tag, or this context has an open transaction that has changed what is watched.
        TagError: a tag is empty, too long or holds control characters.
    """
    if mode not in ("hard", "soft", "reload"):
        raise ConfigError(f'mode must be "hard", "soft" or "reload", got {mode!r}')
    if not tags:
        raise CallError("invalidate takes at least one tag")
    for tag in tags:
        check_tag(tag, ports.config.max_tag_bytes)
    named = list(dict.fromkeys(ports.tag_kinds.with_loaders_texts(tags)))
    if dry_run:
        return count_entries(ports, named)
    refuse_in_dirty_transaction(ports, f"invalidate({', '.join(tags)})", "give session=")
    if mode == "reload":
        return reload_tags(ports, loaders, named)
    return invalidate_tags(ports, named, mode)


def refuse_in_dirty_transaction(ports: Ports, what: str, remedy: str) -> None:
    """Refuse an invalidation that a load before the commit would undo.

    Raises:
        CallError: this context has an open transaction that has changed what is watched.
    """
    if has_dirty_session(ports):
        raise CallError(
            f"{what} within an open transaction that has changed watched rows would be undone by a load before the "
            f"commit; {remedy}, or call it after the commit"
        )
