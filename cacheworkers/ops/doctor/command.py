"""`cacheworkers doctor`: prints the findings of `diagnose`."""

from __future__ import annotations

import itertools

import click

from cacheworkers.ops.doctor.diagnose import CHECK_WITHIN, diagnose
from cacheworkers.ops.doctor.findings import Finding, exit_code
from cacheworkers.ops.output import as_json

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@click.command()
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=CHECK_WITHIN,
    show_default=True,
    help="Timeout of each check, in seconds.",
)
@click.option(
    "--before-start", is_flag=True, help="Skip the checks of workers, queues and beat, which are not started yet."
)
@click.pass_context
def doctor(context: click.Context, timeout: float, before_start: bool) -> None:
    """Look for what is wrong with the set-up, and how to fix it.

    It asks store, broker, workers and database; what it changes are keys of its own, for a moment.

    \b
    cacheworkers doctor
    cacheworkers doctor --before-start && start-the-workers

    Status 0 when nothing is worse than a note, 1 with a warning, 2 with an error.
    """
    cache, show = context.obj
    findings = diagnose(cache, timeout=timeout, is_running=not before_start, from_outside=True)
    if show is as_json:
        show(findings)
    else:
        for _, group in itertools.groupby(findings, lambda each: (each.check, each.level, each.why, each.fix)):
            _print(list(group))
    context.exit(exit_code(findings))


def _print(group: list[Finding]) -> None:
    """Print findings of one rule that have one why and one fix."""
    for finding in group:
        level = click.style(finding.level.ljust(8), fg=_COLOURS[finding.level], bold=finding.level == "error")
        click.echo(f"{level} {finding.check.ljust(22)} {finding.what}")
    if finding.level != "ok":
        click.echo(f"{' ' * 9}why  {finding.why}")
        click.echo(f"{' ' * 9}fix  {finding.fix}")
