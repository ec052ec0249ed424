"""`cacheworkers check-history`: was any recorded read older than an acknowledged invalidation?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from cacheworkers.testing.history import History, Invalidate, Read, check

#: More findings than these are counted, not shown.
MOST_SHOWN = 20


@click.command("check-history")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--l1-for", default=0.0, show_default=True, help="Seconds by which a read from tier l1 may be late.")
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
def check_history(files: tuple[Path, ...], l1_for: float, strict: bool) -> None:
    """Compare each read recorded in FILES with the invalidations acknowledged before it began.

    FILES are JSON lines, together one history.  The latest are shown first.  Status 2 if a read was too old, 1 if a
    line is bad.
    """
    history = History(files, is_strict=strict)
    found = [stale for stale in check(history) if stale.read.tier != "l1" or stale.late > l1_for]
    counts = Counter(type(each) for each in history)
    for reason in history.bad:
        click.echo(reason, err=True)
    for stale in sorted(found, key=lambda each: -each.late)[:MOST_SHOWN]:
        click.echo(str(stale))
    click.echo(f"{counts[Read]:,} reads, {counts[Invalidate]:,} invalidations: {len(found):,} reads were too old")
    if found and all(stale.read.tier == "l1" for stale in found):
        latest = max(stale.late for stale in found)
        click.echo(f"All were from processes' own memory, at most {latest:.6f} s late; --l1-for says what is allowed")
    if found:
        raise click.exceptions.Exit(2)
    if history.bad:
        raise click.ClickException(f"{len(history.bad)} lines were left out, and what they say was not checked")
