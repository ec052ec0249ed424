"""DatabaseMark: notes in the store which database this process loads from, and warns of others under its namespace."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from cacheworkers.config import Config
from cacheworkers.errors import StoreError
from cacheworkers.events import Hook, NamespaceShared
from cacheworkers.store.commands.store import Store

log = logging.getLogger("cacheworkers")

#: A database that no process has noted for longer is history, seconds.
RECENT = 7 * 86400.0


def recent_databases(noted: Mapping[str, float]) -> set[str]:
    """Return the databases that were noted lately."""
    return {database for database, at in noted.items() if at > time.time() - RECENT}


class DatabaseMark:
    """The mark of one process, set once: by a worker before its first load, by others when they are connected."""

    def __init__(self, config: Config, store: Store, emit: Hook, session_factory: Any) -> None:
        self._config = config
        self._store = store
        self._emit = emit
        self._session_factory = session_factory
        self._is_noted = False

    @property
    def database(self) -> str:
        """The database that sessions read, without user and password; empty where that is not known (yet)."""
        bind = getattr(self._session_factory, "kw", {}).get("bind")
        url = getattr(bind, "url", None)
        if url is None:
            return ""
        return f"{url.get_backend_name()}://{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"

    def note_soon(self) -> None:
        """Note it on a thread, once: the caller may not wait for the store."""
        if self.database and not self._is_noted:
            with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter is ending
                threading.Thread(target=self.note, name="cacheworkers-database", daemon=True).start()

    def note(self) -> None:
        """Note it once, and warn if others are noted there."""
        if self._is_noted or not self.database:
            return
        self._is_noted = True
        with contextlib.suppress(StoreError):
            noted: dict[str, float] = self._store.note_database(self.database, time.time()).run()
            others = sorted(recent_databases(noted) - {self.database})
            if others and not self._config.allow_shared_namespace:
                self._warn(others)

    def _warn(self, others: list[str]) -> None:
        namespace = self._config.namespace
        self._emit(NamespaceShared(namespace, self.database, tuple(others)))
        log.warning(
            "the namespace %s is loaded from %s here, and from %s elsewhere: two applications, or staging and "
            "production, would serve each other's values; give each its own Config.namespace, or say "
            "allow_shared_namespace=True if it is one database under several addresses",
            namespace,
            self.database,
            ", ".join(others),
        )
