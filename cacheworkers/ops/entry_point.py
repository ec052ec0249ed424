"""Starts the command line, or says which extra it needs: `cacheworkers` and `celery cacheworkers` both come here."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

#: What the command line imports beyond a plain installation.
NEEDS = ("click", "rich")
REMEDY = 'the command line needs {}: pip install "cacheworkers[cli]"'


def run() -> None:
    """Run `cacheworkers` with this process's arguments; exit with 1 where the extra is missing."""
    missing = _missing()
    if missing:
        sys.exit("cacheworkers: " + REMEDY.format(missing))
    from cacheworkers.ops.cli import main

    main()


def __getattr__(name: str) -> Any:
    """Return `command`: the click command that Celery adds to its own, made when Celery asks for it."""
    if name != "command":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    missing = _missing()
    if not missing:
        from cacheworkers.ops.cli import main

        return main
    import click  # Celery's own command line is made of it

    @click.command(
        "cacheworkers",
        help="Needs the extra cacheworkers[cli].",
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def says_what_is_missing(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(REMEDY.format(missing))

    return says_what_is_missing


def _missing() -> str:
    return ", ".join(name for name in NEEDS if importlib.util.find_spec(name) is None)
