"""Worker diagnostics: what the broker and the workers say of themselves, and how the Celery app is set up."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from celery import Celery
from celery.exceptions import DuplicateNodenameWarning
from celery.schedules import maybe_schedule

from cacheworkers.errors import CacheworkersError
from cacheworkers.workers import celery_settings
from cacheworkers.workers.broker_queues import declared_length
from cacheworkers.workers.broker_text import shown_address, shown_error

#: How long a connection to the broker, and one answer of it, may take, seconds.
ANSWER_FOR = 2.0
#: How long workers have to answer, seconds: the time it takes, since nobody knows how many there are.
WORKERS_FOR = 1.0
UPKEEP = "cacheworkers."
#: The attributes of a load's task that hold its loader's version and schema, and how a worker reports them.
_VERSION, _SCHEMA = "loader_version", "loader_schema"
_REPORTED_VERSION = re.compile(rf"\b{_VERSION}=(\d+)")
_REPORTED_SCHEMA = re.compile(rf"\b{_SCHEMA}=(\w+)")
#: A beat entry that says when, not how often, is taken to be due once a day, seconds.
DAY = 86400.0


class BrokerUnreachable(CacheworkersError):
    """The broker does not answer."""


class BrokerFull(BrokerUnreachable):
    """The broker answers that it has no memory left for what is asked of it."""


class AppFacts(msgspec.Struct, frozen=True):
    """How the app is set up.

    Attributes:
        loaders: names of the loaders that have a task, each with its version and its schema's fingerprint.
        early_acks: those whose task is acknowledged before it has run.
        longest: longest hard time limit of their tasks, seconds.
        visibility: how long a message is its worker's, seconds; None where the broker is not Redis.
        upkeep: upkeep task -> every how many seconds beat sends it.
        is_eager: `task_always_eager`: the app runs tasks where they are sent.
        refuses_json: `accept_content` leaves JSON out.
    """

    loaders: dict[str, tuple[int, str]]
    early_acks: tuple[str, ...]
    longest: float
    visibility: float | None
    upkeep: dict[str, float]
    is_eager: bool = False
    refuses_json: bool = False


class BrokerFacts(msgspec.Struct, frozen=True):
    """What the broker says of itself.

    Attributes:
        where: its URL, without a password.
        run_id, policy: of a Redis; else empty.
        lengths: queue -> messages that wait in it.
    """

    where: str
    run_id: str
    policy: str
    lengths: dict[str, int]


class WorkerFacts(msgspec.Struct, frozen=True):
    """What one worker says of itself.

    Attributes:
        queues: which it consumes.
        loaders: whose tasks it knows.
        versions, schemas: loader -> the version, and the fingerprint of the schema, that it knows, where it says so.
        prefetch: how many messages it reserves; 0 if it does not say.
        slots: how many tasks it runs at a time; 0 if it does not say.
        uptime: for how long it has been running, the youngest of one name, seconds; None if it does not say.
    """

    name: str
    queues: frozenset[str]
    loaders: frozenset[str]
    versions: dict[str, int] = {}
    schemas: dict[str, str] = {}
    prefetch: int = 0
    slots: int = 0
    uptime: float | None = None

    def loads(self, loader: str, version: int, schema: str) -> bool:
        """Return whether it knows a loader, and reports no other version or schema."""
        is_same = self.versions.get(loader, version) == version and self.schemas.get(loader, schema) == schema
        return loader in self.loaders and is_same


def app_facts(app: Celery) -> AppFacts:
    """Return how an app is set up; nothing is asked of anybody.

    Imports the modules that its workers import: they may declare tasks and loaders.
    """
    app.loader.import_default_modules()
    conf = app.conf
    ours = {name.removeprefix(celery_settings.PREFIX): task for name, task in app.tasks.items() if _is_load(name)}
    options = conf.broker_transport_options or {}
    return AppFacts(
        loaders={name: (getattr(task, _VERSION, 1), getattr(task, _SCHEMA, None) or "") for name, task in ours.items()},
        early_acks=tuple(name for name, task in ours.items() if not task.acks_late),
        longest=max((float(task.time_limit or 0) for task in ours.values()), default=0.0),
        visibility=float(options.get("visibility_timeout", 3600)) if _has_redis(app) else None,
        upkeep={
            entry["task"].removeprefix(UPKEEP): _every(app, entry["schedule"])
            for entry in (conf.beat_schedule or {}).values()
            if entry["task"].startswith(UPKEEP)
        },
        is_eager=bool(conf.task_always_eager),
        refuses_json=not {"json", "application/json"} & set(conf.accept_content or ()),
    )


def broker_facts(app: Celery, queues: Sequence[str]) -> BrokerFacts:
    """Return what the broker says of itself and of some queues.

    Raises:
        BrokerUnreachable: it does not answer.
    """
    with _connected(app) as connection:
        channel = connection.default_channel
        info: dict[str, Any] = {}
        if _is_redis(connection):
            info = {**channel.client.info("server"), **channel.client.info("memory")}
        lengths = {queue: declared_length(connection, queue) for queue in queues}
        policy = str(info.get("maxmemory_policy", ""))
        return BrokerFacts(shown_address(app, connection), str(info.get("run_id", "")), policy, lengths)


def worker_facts(app: Celery) -> list[WorkerFacts]:
    """Return what each worker that answers says of itself.

    Raises:
        BrokerUnreachable: the broker does not answer.
    """
    with _connected(app) as connection:

        def ask(command: str, limit: int | None = None, **arguments: Any) -> dict[str, list[Any]]:
            """Return each node's answers: several where nodes share a name, which `inspect` would hide."""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DuplicateNodenameWarning)
                replies = app.control.broadcast(
                    command, arguments, reply=True, timeout=WORKERS_FOR, connection=connection, limit=limit
                )
            found: dict[str, list[Any]] = {}
            for reply in replies or ():
                for name, answer in reply.items():
                    found.setdefault(name, []).append(answer)
            return found

        consumed = ask("active_queues")
        # Those that answered are known now, so that the next question ends with the last answer.
        count = sum(map(len, consumed.values()))
        if not count:
            return []
        tasks = ask("registered", count, taskinfoitems=[_VERSION, _SCHEMA])
        stats = ask("stats", count)
        return [_worker(name, queues, tasks.get(name, []), stats.get(name, [])) for name, queues in consumed.items()]


def _worker(name: str, queues: Sequence[Any], tasks: Sequence[Any], stats: Sequence[Any]) -> WorkerFacts:
    """Return what workers of one name say together."""
    loads = [text for each in tasks if isinstance(each, list) for text in each if _is_load(text)]
    answers = [each for each in stats if isinstance(each, dict) and "error" not in each]
    return WorkerFacts(
        name,
        frozenset(queue["name"] for each in queues if isinstance(each, list) for queue in each),
        frozenset(map(_loader, loads)),
        {_loader(text): int(found[1]) for text in loads if (found := _REPORTED_VERSION.search(text))},
        {_loader(text): found[1] for text in loads if (found := _REPORTED_SCHEMA.search(text))},
        max((int(each.get("prefetch_count") or 0) for each in answers), default=0),
        max((int(each.get("pool", {}).get("max-concurrency") or 0) for each in answers), default=0),
        min((float(each["uptime"]) for each in answers if "uptime" in each), default=None),
    )


@contextlib.contextmanager
def _connected(app: Celery) -> Iterator[Any]:
    timeouts = {"socket_timeout": ANSWER_FOR, "socket_connect_timeout": ANSWER_FOR}
    connection, where = None, "its broker_url"
    try:
        connection = celery_settings.own_connection(app.connection_for_write, ANSWER_FOR, **timeouts)
        where = shown_address(app, connection)
        yield connection
    except Exception as error:  # kombu's transports raise what their drivers raise
        if _is_full(error):
            raise BrokerFull(f"the broker at {where} is out of memory, and takes no messages: {error}") from error
        raise BrokerUnreachable(f"the broker at {where} is unavailable: {shown_error(app, error)}") from error
    finally:
        with contextlib.suppress(Exception):  # it is given up, whatever it says to that
            if connection is not None:
                connection.release()


def _is_full(error: Exception) -> bool:
    """Return whether a Redis refuses to write: within a transaction its reason is in the text alone."""
    return type(error).__name__ == "OutOfMemoryError" or "OOM " in str(error)


def _has_redis(app: Celery) -> bool:
    try:
        return _is_redis(app.connection_for_write())
    except (ValueError, KeyError, ImportError):  # its URL is misread, or its transport: who connects says so
        return False


def _is_redis(connection: Any) -> bool:
    return bool(connection.get_transport_cls().driver_type == "redis")


def _is_load(name: str) -> bool:
    return name.startswith(celery_settings.PREFIX)


def _loader(text: str) -> str:
    """Return the loader of a task as workers name it: `cacheworkers.load.product [loader_version=2]`."""
    return text.removeprefix(celery_settings.PREFIX).split(" ")[0]


def _every(app: Celery, schedule: Any) -> float:
    run_every = getattr(maybe_schedule(schedule, app=app), "run_every", None)
    return DAY if run_every is None else float(run_every.total_seconds())
