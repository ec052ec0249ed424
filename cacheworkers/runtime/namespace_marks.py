"""NamespaceMarks: notes in the store what this process is, and warns of another application under its namespace."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from cacheworkers.config import Config
from cacheworkers.errors import StoreError
from cacheworkers.events import Hook, NamespaceShared
from cacheworkers.store.commands.store import Store

log = logging.getLogger("cacheworkers")

#: Seconds between two notes of one process; a mark that nobody has renewed for three of them has lapsed.
RENEWED_EVERY = 300.0
LAPSES_AFTER = 3 * RENEWED_EVERY
_KINDS = {"mariadb": "mysql"}
_PORTS = {"postgresql": 5432, "mysql": 3306, "oracle": 1521, "mssql": 1433}
_THIS_MACHINE = ("", "localhost", "127.0.0.1", "::1")
DATABASE = "database"
LOADER = "loader"


def conflicts(own: Iterable[str], noted: Mapping[str, float]) -> dict[str, list[str]]:
    """Return each mark of this process that others under the namespace contradict, with theirs.

    Contradictory are two databases, and two modules that declare a loader of one name.  A module that the other's path
    ends in is the same, imported from another directory; what a program is started from (`__main__`) is any module.
    """
    live = live_marks(noted)
    found = {mark: sorted(other for other in live if _contradict(mark, other)) for mark in own}
    return {mark: others for mark, others in found.items() if others}


def live_marks(noted: Mapping[str, float]) -> list[str]:
    """Return the marks that a running process renews."""
    since = time.time() - LAPSES_AFTER
    return sorted(mark for mark, at in noted.items() if at > since)


def modules_of(marks: Iterable[str]) -> dict[str, str]:
    """Return the loaders that marks name, each with the module that declares it."""
    found = (mark.removeprefix(f"{LOADER} ").partition(" of ") for mark in marks if mark.startswith(LOADER))
    return {loader: module for loader, _, module in found}


def _contradict(mark: str, other: str) -> bool:
    if mark.startswith(DATABASE):
        return other.startswith(DATABASE) and other != mark
    loader, _, module = mark.partition(" of ")
    other_loader, _, other_module = other.partition(" of ")
    one, two = f".{module}", f".{other_module}"
    return loader == other_loader and not one.endswith(two) and not two.endswith(one)


def _address(engine: Any) -> str:
    """Return what tells an engine's database, and its schema where the engine sets one, from others.

    What URLs of one database may differ in is no part of it: this machine's names, the usual port, a file's path.
    """
    url = engine.url
    schemas = engine.get_execution_options().get("schema_translate_map") or url.query.get("options", "")
    schema = f" {schemas}" if schemas else ""
    kind = _KINDS.get(url.get_backend_name(), url.get_backend_name())
    if kind == "sqlite":
        file = url.database or ""
        return f"{kind}:///{os.path.realpath(file) if file and not file.startswith((':', 'file:')) else file}{schema}"
    hosts = url.host or url.query.get("host") or ""
    host = hosts.lower() if isinstance(hosts, str) else ",".join(hosts).lower()
    if host in _THIS_MACHINE or host.startswith("/"):
        host = "localhost"
    port = f":{url.port}" if url.port and url.port != _PORTS.get(kind) else ""
    return f"{kind}://{host}{port}/{url.database or ''}{schema}"


class NamespaceMarks:
    """The marks of one process: renewed by a worker before it loads, and by all while they are connected."""

    def __init__(self, config: Config, store: Store, emit: Hook, session_factory: Any) -> None:
        self._config = config
        self._store = store
        self._emit = emit
        self._session_factory = session_factory
        #: Loader -> the module that declares it.
        self.modules: dict[str, str] = {}
        self._noted_at = 0.0
        self._has_noted_database = False
        self._warned: set[str] = set()

    @property
    def database(self) -> str:
        """The database that sessions read, without user and password; empty where that is not known (yet)."""
        options = getattr(self._session_factory, "kw", {})
        binds = [options.get("bind"), *(options.get("binds") or {}).values()]
        return ", ".join(sorted({_address(bind.engine) for bind in binds if hasattr(bind, "engine")}))

    def own(self) -> list[str]:
        """Return what this process is: its database, and each loader with its module."""
        databases = [f"{DATABASE} {self.database}"] if self.database else []
        modules = sorted(self.modules.items())
        return databases + [f"{LOADER} {name} of {module}" for name, module in modules if module != "__main__"]

    def noted_modules(self) -> dict[str, str]:
        """Return the loaders of running processes, each with the module that declares it.

        Raises:
            StoreError: the store does not say.
        """
        return modules_of(live_marks(self._store.marks().run()))

    def note_soon(self) -> None:
        """Note it on a thread, if it is due: the caller may not wait for the store."""
        if self._is_due():
            with contextlib.suppress(RuntimeError):  # no thread can be started, or the interpreter is ending
                threading.Thread(target=self.note, name="cacheworkers-marks", daemon=True).start()

    def note(self) -> None:
        """Note it if it is due, and warn once of each mark that others contradict."""
        if not self._is_due() or not (own := self.own()):
            return
        self._noted_at = time.monotonic()
        self._has_noted_database = bool(self.database)
        with contextlib.suppress(StoreError):
            found = conflicts(own, self._store.note_marks(own, time.time()).run())
            if not self._config.allow_shared_namespace:
                for mark, others in found.items():
                    self._warn(mark, others)

    def _is_due(self) -> bool:
        if not self._noted_at or time.monotonic() > self._noted_at + RENEWED_EVERY:
            return True
        return not self._has_noted_database and bool(self.database)  # sessions may be bound later

    def _warn(self, mark: str, others: list[str]) -> None:
        if mark in self._warned:
            return
        self._warned.add(mark)
        namespace = self._config.namespace
        self._emit(NamespaceShared(namespace, mark, tuple(others)))
        log.warning(
            "the namespace %s is used for %s by this process, and for %s by another: two applications, or staging and "
            "production, would serve each other's values; give each its own Config.namespace, or say "
            "allow_shared_namespace=True if it is one database under several addresses",
            namespace,
            mark,
            ", ".join(others),
        )
