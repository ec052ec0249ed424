"""The broker's address and errors as log lines and doctor show them: without a password, escaped or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery

#: Characters that end a URL's user and password for its parser, unless they are percent-encoded.
_ENDS = "/?#[]@"
_UNCLEAR = "the app's broker URL has a / ? # [ ] or @ in its user or password: write it percent-encoded, %2F for /"


def shown_address(app: Celery, connection: Any) -> str:
    """Return the address of a connection without its password; without host either where that may hold a part of it."""
    shown: str = connection.as_uri()
    return f"{shown.partition('://')[0]}://***" if any(map(_is_unclear, _urls(app))) else shown


def shown_error(app: Celery, error: BaseException) -> str:
    """Return the class and text of an error of the broker's client.

    A parser quotes what it takes for a port or a database: a part of a password that was not percent-encoded.
    """
    if any(map(_is_unclear, _urls(app))):
        return f"{type(error).__name__}: {_UNCLEAR}"
    return f"{type(error).__name__}: {error}"


def _urls(app: Celery) -> Iterable[str]:
    for urls in (app.conf.broker_read_url, app.conf.broker_write_url):
        for each in [urls] if isinstance(urls, str) else urls or ():
            yield from str(each).split(";")


def _is_unclear(url: str) -> bool:
    """Return whether a URL's user or password ends earlier for a parser than its writer meant."""
    _, _, rest = url.partition("://")
    credentials, at, _ = rest.rpartition("@")
    return bool(at) and any(character in credentials for character in _ENDS)
