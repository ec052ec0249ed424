"""`cacheworkers statements`: which statements in a code base or a log a watch would refuse."""

from __future__ import annotations

from pathlib import Path

import click

from cacheworkers.ops.output import Obj, note
from cacheworkers.sql.watch.statement_search import mapped_tables, refused_statements


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--table",
    "tables",
    multiple=True,
    help="A table that will be watched.  [default: the tables that the cache watches]",
)
@click.option(
    "--dialect",
    type=click.Choice(["postgresql", "mysql", "mariadb", "sqlite"]),
    help="The SQL dialect of the statements.  [default: all that are known]",
)
@click.pass_obj
def statements(obj: Obj, paths: tuple[Path, ...], tables: tuple[str, ...], dialect: str | None) -> None:
    """List the statements in PATHS that a watched session would refuse.

    PATHS are Python and .sql files, folders of these, and logs.

    \b
    cacheworkers statements shop/ --table product --table price
    cacheworkers statements postgres.log

    Status 2 if there are any: they need triggers, or `cacheworkers_unwatched`.
    """
    cache, show = obj
    named = tables or (cache.internals.watching.tables if cache.is_watching else ())
    if not named:
        raise click.UsageError("no table is watched: give --table")
    found = list(refused_statements(paths, named, dialect or "", mapped_tables()))
    show([{"where": each.where, "changes": ", ".join(each.changes), "statement": each.statement} for each in found])
    if found:
        raise click.exceptions.Exit(2)
    note(f"no statement there changes {', '.join(sorted(named))} outside the unit of work")
