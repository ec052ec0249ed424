"""NamespaceMarks: notes in the store what this process is; reports, or refuses to be, a second application there.

One fact that differs, a database or a module, is reported: healthy deployments show it (docs/explanation/decisions.md).
A loader's name that two applications have in common while they share neither a module nor a database, nor are linked by
a third process, is a refusal for the one that comes later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cacheworkers.config import Config
from cacheworkers.errors import NamespaceTaken, StoreError, UnsafeStore
from cacheworkers.events import Hook, NamespaceShared
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.store.commands.replies import instants
from cacheworkers.store.commands.store import Store
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.server_check import check_server
from cacheworkers.workers.worker_command import safe_options, worker_command

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger("cacheworkers")

#: Seconds between two notes of one process, and for how long after its last note it counts as running.
RENEWED_EVERY = 30.0
LIVES_FOR = 90.0
#: Seconds after which a mark that nobody has renewed is no longer reported, and after which it is deleted.
LAPSES_AFTER = 900.0
FORGOTTEN_AFTER = 86400.0
#: Seconds for which a refusal holds before the store is asked again.
REFUSED_FOR = 5.0
_KINDS = {"mariadb": "mysql"}
_PORTS = {"postgresql": 5432, "mysql": 3306, "oracle": 1521, "mssql": 1433}
#: With the directories of sockets in which a server that listens on localhost is usual; another one is another server.
_THIS_MACHINE = ("", "localhost", "127.0.0.1", "::1", "/tmp", "/run/postgresql", "/var/run/postgresql")
DATABASE = "database"
LOADER = "loader"
#: The `-A` of a worker that has loaders, and sessions that are bound.
WORKER = "worker"
#: A module whose loaders load in the process that declares it, and a database of that process.
MODULE = "module"
#: The marks of modules that this process has noted: it is no stranger to itself.
_noted_here: set[str] = set()


def conflicts(own: Iterable[str], noted: Mapping[str, float]) -> dict[str, list[str]]:
    """Return each mark of this process that others under the namespace contradict, with theirs.

    Contradictory are two databases, and two modules that declare a loader of one name.  A module that the other's path
    ends in is the same, imported from another directory, or run as a script.
    """
    live = live_marks(noted)
    found = {mark: sorted(other for other in live if _contradict(mark, other)) for mark in own}
    return {mark: others for mark, others in found.items() if others}


def other_application(own: Iterable[str], noted: Mapping[str, float]) -> tuple[str, str] | None:
    """Return a loader and module of this process, and the mark of another application that is running and has it too.

    Modules and databases that were ever noted together, by whatever process, are of one application: a web process
    behind a pooler and a worker that connects directly have a module in common, a module's old and new name a database.
    """
    own, marks = list(own), {*own, *noted}
    pairs = {mark: _split(mark, " with ") for mark in marks if mark.startswith(MODULE)}
    joined = {pairs[mark] for mark in own if mark in pairs}
    ours = {module for module, _ in joined}
    while more := {pair for pair in pairs.values() if any(_is_linked(pair, each) for each in joined)} - joined:
        joined |= more
    since = time.time() - LIVES_FOR
    others = [mark for mark, pair in pairs.items() if pair not in joined and noted.get(mark, 0.0) > since]
    loaders = {mark: _split(mark, " of ") for mark in marks if mark.startswith(LOADER)}
    for other in sorted(set(others) - _noted_here):
        theirs = {name for name, module in loaders.values() if module == pairs[other][0]}
        for mark in own:
            if mark in loaders and loaders[mark][1] in ours and loaders[mark][0] in theirs:
                return mark, f"{loaders[mark][0]} of {pairs[other][0]} with {pairs[other][1]}"
    return None


def _split(mark: str, word: str) -> tuple[str, str]:
    """Return the two things that a mark names."""
    one, _, other = mark.partition(" ")[2].partition(word)
    return one, other


def _is_linked(pair: tuple[str, str], other: tuple[str, str]) -> bool:
    return pair[1] == other[1] or _is_same(pair[0], other[0])


def _is_same(module: str, other: str) -> bool:
    """Return whether two names are one module, imported from two directories perhaps."""
    one, two = f".{module}", f".{other}"
    return one.endswith(two) or two.endswith(one)


def live_marks(noted: Mapping[str, float], within: float = LAPSES_AFTER) -> list[str]:
    """Return the marks that a running process renews, by default all that are reported."""
    since = time.time() - within
    return sorted(mark for mark, at in noted.items() if at > since)


def modules_of(marks: Iterable[str]) -> dict[str, str]:
    """Return the loaders that marks name, each with the module that declares it."""
    found = (mark.removeprefix(f"{LOADER} ").partition(" of ") for mark in marks if mark.startswith(LOADER))
    return {loader: module for loader, _, module in found}


def _contradict(mark: str, other: str) -> bool:
    if mark.startswith(DATABASE):
        return other.startswith(DATABASE) and other != mark
    if not (mark.startswith(LOADER) and other.startswith(LOADER)):
        return False
    (loader, module), (other_loader, other_module) = _split(mark, " of "), _split(other, " of ")
    return loader == other_loader and not _is_same(module, other_module)


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
    if host in _THIS_MACHINE:
        host = "localhost"
    port = f":{url.port}" if url.port and url.port != _PORTS.get(kind) else ""
    return f"{kind}://{host}{port}/{url.database or ''}{schema}"


class NamespaceMarks:
    """The marks of one process: compared before it uses the store, renewed by workers and by all that are connected."""

    def __init__(self, config: Config, store: Store, emit: Hook, session_factory: Any) -> None:
        self._config = config
        self._store = store
        self._emit = emit
        self._session_factory = session_factory
        #: Loader -> the module that declares it.
        self.modules: dict[str, str] = {}
        self._loading_modules: set[str] = set()
        #: Of the command line of this worker, and of one that was seen last.
        self._own_options = ""
        self._options = ""
        self._is_bound_late = self.is_unbound
        #: The `-A` of this command line, where it names a module with the Celery app, as one that calls a factory.
        self.given = ""
        self._noted_at = 0.0
        self._lapsed: list[str] = []
        self._has_noted_database = False
        self._warned: set[str] = set()
        self._is_unsafe = False
        self._refusal = ""
        self._refused_until = 0.0

    def declare(self, loader: str, module: str, *, loads_here: bool) -> None:
        """Note a loader.

        Args:
            module: as a worker imports it; empty where none could, as of a notebook, which contradicts nobody.
            loads_here: this process may load for its own readers; a service that only reads never does, and its
                database says nothing of the loader's.
        """
        self.modules[loader] = module
        if module and loads_here:
            self._loading_modules.add(module)

    @property
    def databases(self) -> list[str]:
        """The databases that sessions read, without user and password; none where that is not known (yet)."""
        options = getattr(self._session_factory, "kw", {})
        binds = [options.get("bind"), *(options.get("binds") or {}).values()]
        return sorted({_address(bind.engine) for bind in binds if hasattr(getattr(bind, "engine", None), "url")})

    @property
    def is_unbound(self) -> bool:
        """Whether sessions have no engine (yet); False where their class chooses one itself."""
        factory = self._session_factory
        class_ = getattr(factory, "class_", None)
        class_ = getattr(factory, "kw", {}).get("sync_session_class", getattr(class_, "sync_session_class", class_))
        chooses = getattr(class_, "get_bind", None)
        return chooses is not None and chooses.__module__.startswith("sqlalchemy.") and not self.databases

    def worker_command(self, app: Celery, queues: Sequence[str] = (), *, asks: bool = False) -> str:
        """Return the command of a worker of some queues: as one that was seen is started, if any was.

        Args:
            asks: ask the store now which were seen.
        """
        with contextlib.suppress(StoreError):
            if asks:
                self._see_workers(self._store.marks().run())
        options = self._options or (self.given if self._is_bound_late else "")
        return worker_command(app, queues, self.modules.values(), options=options, is_bound_late=self._is_bound_late)

    def _see_workers(self, noted: Mapping[str, float]) -> None:
        marks = ((at, mark.partition(" ")) for mark, at in noted.items())
        seen = [(at, safe) for at, (kind, _, options) in marks if kind == WORKER and (safe := safe_options(options))]
        # Workers of another queue prefix are another application's.
        self._options = max(seen)[1] if seen and not self._config.queue_prefix else ""

    def own(self) -> list[str]:
        """Return what this process is: its databases, each loader with its module, and both together unless shared."""
        databases = self.databases
        own = [f"{DATABASE} {', '.join(databases)}"] if databases else []
        own += [f"{LOADER} {name} of {module}" for name, module in sorted(self.modules.items()) if module]
        if not self._config.allow_shared_namespace:  # who says so is nobody's stranger
            own += [f"{MODULE} {module} with {each}" for module in sorted(self._loading_modules) for each in databases]
        if self._own_options and self.modules and not (self.is_unbound or self._config.queue_prefix):
            own.append(f"{WORKER} {self._own_options}")
        return own

    # -- admission, at the first exchange

    def question(self) -> Request | None:
        """Return the request for all marks; None where they cannot refuse it.

        Raises:
            NamespaceTaken: so it was a moment ago.
        """
        if self._refusal and time.monotonic() < self._refused_until:
            raise NamespaceTaken(self._refusal)
        if self._config.allow_shared_namespace or not self._loading_modules or not self.databases:
            return None
        return Request(("HGETALL", self._store.keys.marks))

    def check(self, reply: Any) -> None:
        """Let this process use the store, if no other application is running under its namespace.

        Raises:
            NamespaceTaken: one is, and has a loader of the same name.
        """
        found = other_application(self.own(), instants(reply))
        if found is None:
            self._refusal = ""
            return
        mark, other = found
        namespace, databases = self._config.namespace, ", ".join(self.databases)
        text = (
            f"the namespace {namespace} is used by another application, which runs, or ran within {LIVES_FOR:g} s: "
            f"it has the loader {other}, and this process {mark.partition(' ')[2]} with {databases}; they would serve "
            f"each other's values, so this process does not use the store: give it its own "
            f'Config(namespace="..."), or say '
            f"allow_shared_namespace=True in either if they are one"
        )
        if not self._refusal:
            self._emit(NamespaceShared(namespace, mark, (other,)))
            log.error("%s", text)
        self._refusal, self._refused_until = text, time.monotonic() + REFUSED_FOR
        raise NamespaceTaken(text)

    def admit(self) -> None:
        """Return if workers of this process may take messages, or the store does not say.

        Raises:
            NamespaceTaken: another application uses the namespace.
        """
        try:
            self._store.marks().run()
        except NamespaceTaken:
            raise
        except StoreError:
            pass

    # -- notes

    def noted_modules(self, within: float = LAPSES_AFTER) -> dict[str, str]:
        """Return the loaders of running processes, each with the module that declares it.

        Raises:
            StoreError: the store does not say.
        """
        return modules_of(live_marks(self._store.marks().run(), within))

    def note_soon(self) -> None:
        """Note it on a thread, if it is due: the caller may not wait for the store."""
        if self._is_due():
            with contextlib.suppress(RuntimeError):  # no thread can be started, or the interpreter is ending
                ProcessThread(self.note, "cacheworkers-marks").start()

    def note_as_worker(self, options: str) -> None:
        """Note it, and the options that this worker was started with."""
        if options != self._own_options:
            self._own_options, self._noted_at = options, 0.0
        self.note()

    def note(self) -> None:
        """Note it if it is due, and warn once of each mark that others contradict."""
        if not self._is_due() or not (own := self.own()):
            return
        self._noted_at, now = time.monotonic(), time.time()
        self._has_noted_database = bool(self.databases)
        with contextlib.suppress(StoreError):
            _noted_here.update(mark for mark in own if mark.startswith(MODULE))
            noted = self._store.note_marks(own, now, self._lapsed).run()
            self._see_workers(noted)
            self._lapsed = [mark for mark, at in noted.items() if at < now - FORGOTTEN_AFTER]
            found = conflicts(own, noted)
            if not self._config.allow_shared_namespace:
                for mark, others in found.items():
                    self._warn(mark, others)
            self._check_servers()

    def _check_servers(self) -> None:
        """Log once that a server has become unsafe since this process began to use it."""
        try:
            for info in self._store.info().run():
                check_server(info, self._store.link.where, allows_evicting=self._config.allow_evicting_store)
        except UnsafeStore as error:
            if not self._is_unsafe:
                log.error("%s", error)
            self._is_unsafe = True
        else:
            self._is_unsafe = False

    def _is_due(self) -> bool:
        if not self._noted_at or time.monotonic() > self._noted_at + RENEWED_EVERY:
            return True
        return not self._has_noted_database and bool(self.databases)  # sessions may be bound later

    def _warn(self, mark: str, others: list[str]) -> None:
        if mark in self._warned:
            return
        self._warned.add(mark)
        namespace = self._config.namespace
        self._emit(NamespaceShared(namespace, mark, tuple(others)))
        log.warning(
            "the namespace %s is used for %s by this process, and for %s by another within 15 minutes: if they are two "
            "applications, or staging and production, they serve each other's values; give each its own "
            "Config.namespace, or say allow_shared_namespace=True if it is one database under several addresses",
            namespace,
            mark,
            ", ".join(others),
        )
