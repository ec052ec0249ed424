"""`cacheworkers check-history`: checks recorded reads against acknowledged invalidations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import msgspec

from cacheworkers.ops.history import History, Invalidate, Read, Stale, check
from cacheworkers.ops.output import Show, as_json, note

#: More findings than these are counted, not shown.
MOST_SHOWN = 20


class Checked(msgspec.Struct, frozen=True):
    """What a history says, for scripts; `stale` has the latest of those that were too old, `bad` counts lines."""

    reads: int
    invalidations: int
    too_old: int
    stale: list[Stale]
    bad: int


@click.command("check-history")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--l1-for", default=0.0, show_default=True, help="Seconds by which a read from tier l1 may be late.")
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
@click.pass_obj
def check_history(obj: tuple[None, Show], files: tuple[Path, ...], l1_for: float, strict: bool) -> None:
    """Say whether any recorded read was too old.

    Each read in FILES is compared with the invalidations acknowledged before it began.

    FILES are JSON lines, together one history.  The latest reads are shown first.

    \b
    cacheworkers check-history /var/log/shop/history-*.jsonl

    Status 2 if a read was too old, 1 if a line is bad.
    """
    history = History(files, is_strict=strict)
    found = sorted(check(history, l1_for=l1_for), key=lambda each: -each.late)
    counts = Counter[type]()
    for each in history:
        counts[type(each)] += each.count if isinstance(each, Read) else 1
    for reason in history.bad:
        note(reason)
    if obj[1] is as_json:
        as_json(Checked(counts[Read], counts[Invalidate], len(found), found[:MOST_SHOWN], len(history.bad)))
    else:
        for stale in found[:MOST_SHOWN]:
            click.echo(str(stale))
        click.echo(f"{counts[Read]:,} reads, {counts[Invalidate]:,} invalidations: {len(found):,} reads were too old")
        if found and all(stale.read.tier == "l1" for stale in found):
            allowed = "--l1-for says what is allowed"
            click.echo(f"All were from processes' own memory, at most {found[0].late:.6f} s late; {allowed}")
    if found:
        raise click.exceptions.Exit(2)
    if history.bad:
        raise click.ClickException(f"{len(history.bad)} lines were left out, and what they say was not checked")
