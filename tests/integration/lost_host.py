"""An app whose broker has a host name; the name resolves until a file says that the host is gone."""

from __future__ import annotations

import os
import socket
from typing import Any

from celery import Celery

from cacheworkers import Cache, Config

resolve: Any = socket.getaddrinfo


def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
    if host == "broker.shop":
        if os.path.exists(os.environ["GONE"]):
            raise socket.gaierror(-2, "Name or service not known")
        host = "127.0.0.1"
    return resolve(host, *args, **options)


socket.getaddrinfo = getaddrinfo
app = Celery("lost_host", broker=os.environ["BROKER_URL"])
cache = Cache(Config(redis_url=os.environ["REDIS_URL"]), celery=app)


def note(name: str) -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{name}\n")


@app.task(acks_late=True)
def hold() -> None:
    """Holds its message until the host is gone, or has been."""
    note("held")
    while not os.path.exists(os.environ["OVER"]):
        pass


@app.task
def greet() -> None:
    note("greeted")
