"""Postgres notifications: how a relay waits for what triggers write, on a thread or on a loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection


class Notifications:
    """Waits for a channel's notifications on a psycopg connection, or without one for a stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._driver: Any = None

    def listen(self, connection: Connection, channel: str) -> None:
        """Listen on a connection, which is used for nothing else."""
        if connection.dialect.driver != "psycopg":
            return
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"LISTEN {channel}")
        self._driver = connection.connection.driver_connection

    def wait(self, seconds: float) -> None:
        """Return when a notification has come, or after some seconds."""
        if self._driver is None:
            self._stop.wait(seconds)
            return
        for _ in self._driver.notifies(timeout=seconds, stop_after=1):
            return


class AsyncNotifications:
    """Waits for a channel's notifications on an async connection of psycopg or asyncpg; others wait for the time."""

    def __init__(self) -> None:
        self._driver: Any = None
        self._kind = ""
        self._arrived = asyncio.Event()

    async def listen(self, connection: AsyncConnection, channel: str) -> None:
        """Listen on a connection, which is used for nothing else."""
        self._kind = connection.dialect.driver
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        self._driver = (await connection.get_raw_connection()).driver_connection
        if self._kind == "psycopg_async" or self._kind == "psycopg":
            await self._driver.execute(f"LISTEN {channel}")
        elif self._kind == "asyncpg":
            await self._driver.add_listener(channel, lambda *_: self._arrived.set())

    async def wait(self, seconds: float) -> None:
        """Return when a notification has come, or after some seconds.

        Raises:
            OSError: the connection is closed.
        """
        if self._kind == "psycopg_async" or self._kind == "psycopg":
            async for _ in self._driver.notifies(timeout=seconds, stop_after=1):
                return
            return
        if self._kind == "asyncpg" and self._driver.is_closed():
            raise OSError("the connection that listens is closed")
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return
        self._arrived.clear()
