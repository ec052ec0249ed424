"""`cacheworkers tag` and `cacheworkers invalidate`: list the calls of a tag, and invalidate tags."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click

from cacheworkers.cache import Cache
from cacheworkers.errors import CallError, UnknownLoader
from cacheworkers.flows.invalidate import Invalidation
from cacheworkers.ops.output import Obj, note

#: More entries than this are not invalidated without a question.
MANY = 1000


@click.command()
@click.argument("tag")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Maximum number of calls to list."
)
@click.pass_obj
def tag(obj: Obj, tag: str, limit: int) -> None:
    """List the calls whose entries have TAG.

    \b
    cacheworkers tag category:7

    Status 1 if nothing has the tag and no loader declares one like it.
    """
    cache, show = obj
    calls = cache.calls_of(tag, limit + 1)
    if not calls:
        _refuse_unknown(cache, [tag], "no entry has it")
        note(f"no entry has the tag {tag!r} now")
    show([{"call": call} for call in calls[:limit]])
    if len(calls) > limit:
        note(
            f"more than {limit:,} entries have it (--limit); "
            f"`cacheworkers invalidate {shlex.quote(tag)} --dry-run` counts them"
        )


@click.command()
@click.argument("tags", nargs=-1)
@click.option("--loader", help="Drop all entries of this loader, whatever their tags.")
@click.option(
    "--mode",
    type=click.Choice(["hard", "soft", "reload"]),
    default="hard",
    show_default=True,
    help="hard: the next read loads.  soft: it gets the old value while a worker loads.  reload: hot ones load now.",
)
@click.option("--dry-run", is_flag=True, help="Count only.")
@click.option(
    "--yes", is_flag=True, help=f"Skip the question about more than {MANY:,} entries, or about an unknown tag."
)
@click.pass_obj
def invalidate(obj: Obj, tags: tuple[str, ...], loader: str | None, mode: Any, dry_run: bool, yes: bool) -> None:
    """Invalidate everything that has any of TAGS, or is of one LOADER.

    Once it has returned, no read through the store sees a value loaded before.  `seq` is the number of the
    invalidation, 0 where there was none.

    \b
    cacheworkers invalidate category:7 --dry-run
    cacheworkers invalidate category:7 product:42
    cacheworkers invalidate category:7 --mode reload --yes
    cacheworkers invalidate --loader product --yes

    Status 1, and nothing is changed, if you say no, or if nothing has one of the tags and no loader declares one like
    it: a typing error, most likely.  Scripts say --yes.
    """
    cache, show = obj
    if loader is not None:
        if tags or dry_run or mode != "hard":
            raise click.UsageError("--loader takes no tags, no --mode and no --dry-run")
        if not yes:
            _confirm(f"all entries of {loader}")
        show(cache.invalidate_loader(loader))
        return
    if not tags:
        raise click.UsageError("give tags, or --loader")
    entries = {tag: cache.invalidate(tag, dry_run=True).entries for tag in tags}
    total = sum(entries.values())
    if not yes:
        empty = [tag for tag, count in entries.items() if not count]
        _refuse_unknown(cache, empty, "nothing was invalidated; give --yes to invalidate all the same")
    if dry_run:
        show(Invalidation(0, total))
        return
    if total > MANY and not yes:
        _confirm(f"{', '.join(tags)}: {total:,} entries")
    show(cache.invalidate(*tags, mode=mode))


def _refuse_unknown(cache: Cache, empty: Sequence[str], so: str) -> None:
    """
    Raises:
        click.ClickException: one of the tags, which no entry has, could not come from any loader's templates either.
    """
    templates = [spec.templates for spec in cache.loaders.values()]
    unknown = [tag for tag in empty if not any(each.may_make(tag) for each in templates)]
    if unknown:
        _refuse_call(cache, unknown[0], so)
        declared = ", ".join(sorted({text for each in templates for text in each.declared})) or "none"
        raise click.ClickException(
            f"unknown tag {', '.join(map(repr, unknown))}: {so}; loaders declare {declared}; what `load.tag` adds "
            f"is known by its entries"
        )


def _refuse_call(cache: Cache, text: str, so: str) -> None:
    """
    Raises:
        click.ClickException: it is a call, and no tag.
    """
    try:
        tags = [each.tag for each in cache.explain(text).tags]
    except (UnknownLoader, CallError):
        return
    how = f"its tags are {', '.join(tags)}: cacheworkers invalidate {shlex.quote(tags[0])}" if tags else "it has no tag"
    raise click.ClickException(f"{text!r} is a call, not a tag: {so.partition(';')[0]}; {how}")


def _confirm(what: str) -> None:
    try:
        click.confirm(f"{what}; invalidate them?", abort=True)
    except click.Abort:
        raise click.ClickException("nothing was invalidated; give --yes to skip the question") from None
