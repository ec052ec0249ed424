"""`cacheworkers exporter`: serves the exporter's metrics over HTTP."""

from __future__ import annotations

import contextlib
import signal
import time

import click

from cacheworkers.ops.output import Obj


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9808,
    show_default=True,
    help="Port for Prometheus to scrape: http://...:PORT/metrics.",
)
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 makes the metrics visible to other machines.",
)
@click.pass_obj
def exporter(obj: Obj, port: int, address: str) -> None:
    """Show Prometheus what only servers know, until Ctrl-C or SIGTERM.

    Queues with the age of their oldest message, the store, access scores and the outbox.  With
    PROMETHEUS_MULTIPROC_DIR set, the metrics of all processes that share it are shown too.

    \b
    cacheworkers exporter --port 9808 --address 0.0.0.0

    Status 1 if the port is taken, by another exporter perhaps.
    """
    try:
        from cacheworkers.ops.exporter import serve_cache
    except ImportError as error:
        raise click.ClickException(f"the exporter needs cacheworkers[metrics]: {error}") from None
    cache, _ = obj
    stop = serve_cache(cache, port, address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a container's first process ignores it otherwise
    with contextlib.suppress(KeyboardInterrupt):
        click.echo(f"metrics at http://{address}:{port}/metrics; Ctrl-C stops it", err=True)
        while True:  # a signal right before a sleep is noticed after it, and not never
            time.sleep(1.0)
    stop()
