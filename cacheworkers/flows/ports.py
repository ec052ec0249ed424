"""What flows need: this process's parts, the loaders they run, and the two ports that others answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import msgspec

from cacheworkers.config import Config
from cacheworkers.core.codec import Codec
from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT
from cacheworkers.core.signature import Call, Signature
from cacheworkers.core.tag_templates import TagTemplates
from cacheworkers.core.tag_text import TagKinds
from cacheworkers.errors import DeclarationError
from cacheworkers.events import Hook
from cacheworkers.local.access_counter import AccessCounter
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.coherence import Coherence
from cacheworkers.local.l1 import L1
from cacheworkers.local.load_time import LoadTime
from cacheworkers.local.other_release_entries import OtherReleaseEntries
from cacheworkers.local.rate_limiter import RateLimiter, per_second
from cacheworkers.local.read_forecasts import ReadForecasts
from cacheworkers.local.waiters import Waiters
from cacheworkers.policy import Policy
from cacheworkers.store.commands.steps import Write
from cacheworkers.store.commands.store import Store
from cacheworkers.store.tracking.listener import Listener

QueueKind = Literal["miss", "revalidate", "warm"]


class LoadRequest(msgspec.Struct, frozen=True):
    """A claim that a worker is to honour.

    Attributes:
        token: the lease's, 16 hex digits.
        seen: the version the reader saw, as hex; empty for none.
        trace: the trace of its reader, for a tracing hook; empty for none.
        snapshot: what its claim has taken, as `snapshot_of` reads it; empty for none.
    """

    loader: str
    call: str
    token: str
    seen: str
    queue: QueueKind
    trace: str = ""
    snapshot: str = ""


class Enqueue(msgspec.Struct, frozen=True):
    """A request's message, for the store to push into its queue together with the claim.

    Attributes:
        key: of the queue, a list on the store's server.
        message: in two parts, between which the store puts the claim's snapshot.
        note_sent: called when it has been pushed.
    """

    key: str
    message: tuple[bytes, bytes]
    note_sent: Callable[[], None]


class Dispatcher(Protocol):
    """Sends load requests to workers."""

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Take requests, to be grouped together, without blocking or raising; how many, from the first on, had room.

        The caller gives back the leases of the others.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoaderSpec:
    """A declared loader, as flows see it."""

    name: str
    function: Callable[..., Any]
    policy: Policy
    signature: Signature
    codec: Codec
    templates: TagTemplates
    is_batch: bool
    is_async: bool
    rate_limit: str | None = None
    load_times: LoadTime = field(default_factory=LoadTime)
    fingerprint: bytes = NO_FINGERPRINT
    #: The rate limit as this process keeps it while the store does not; None for no limit.
    limiter: RateLimiter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.rate_limit is None:
            return
        try:
            limiter = RateLimiter(per_second(self.rate_limit))
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"{self.name} cannot be declared: {error}") from None
        object.__setattr__(self, "limiter", limiter)

    @property
    def load_for(self) -> float:
        """Deadline of one load, seconds."""
        return self.policy.load_for


class Runner(Protocol):
    """Runs loaders' own code, in a worker or in a reader's process."""

    where: str

    def step(self, loader: LoaderSpec, loading: Loading) -> Step:
        """The step that runs the loader for all calls of `loading`; its result maps call text to value or exception."""
        ...


@dataclass(slots=True)
class Loading:
    """One attempt at loading some calls: what the loader receives, and what it reports besides its values.

    Attributes:
        calls: what to load.
        previous: call text -> envelope that is in the store now.
        deadline: monotonic instant at which the lease ends.
        seq: the snapshot; nested reads accept nothing older.
        tags: call text -> tags known only from the data.
        fresh_for: call text -> what the loader asked for instead of the policy's.
        unshared: texts of calls whose value is for those who wait for it, and for no later read.
        keys: of a batch, the very list that the loader is given.
        reads_replica: its session reads a replica, which may lag.
    """

    calls: list[Call]
    previous: dict[str, bytes | None]
    deadline: float
    seq: int
    tags: dict[str, list[str]] = field(default_factory=dict)
    fresh_for: dict[str, float] = field(default_factory=dict)
    unshared: set[str] = field(default_factory=set)
    keys: list[Any] | None = None
    reads_replica: bool = False

    def only(self, call: Call) -> Loading:
        """Return this load as one call of the batch sees it: what it reads is that call's alone."""
        return replace(self, calls=[call], keys=None)


class SlowLoads(Protocol):
    """Marks loads that did without `begin` as begun, once they take long; or writes what they have loaded."""

    def begin(self, call: str, token: str, load_for: float) -> None:
        """Note a load that begins under its claim's token."""
        ...

    def may_wait(self, token: str, write: Write[Any]) -> bool:
        """Have a load's write done soon, if it is not done before; False if the load is none of these, or marked."""
        ...

    def end(self, token: str) -> None:
        """Note that it has ended."""
        ...


class RecentRequests:
    """What this process asked for lately: at most once per entry version and `load_for`."""

    __slots__ = ("_lock", "_until")

    _MAX_VERSIONS = 20_000

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again, as a child does after a fork: a thread of the parent's may have held the lock."""
        self._until: dict[tuple[str, bytes, float], float] = {}
        self._lock = threading.Lock()

    def has(self, version: tuple[str, bytes, float], now: float) -> bool:
        """Return whether this was asked for lately."""
        return self._until.get(version, 0.0) > now

    def is_due(self, version: tuple[str, bytes, float], now: float, wait_for: float) -> bool:
        """Return whether to ask now; if so, not again for `wait_for` seconds."""
        if self.has(version, now):
            return False
        with self._lock:
            if self.has(version, now):
                return False
            if len(self._until) >= self._MAX_VERSIONS:
                self._until = {key: until for key, until in self._until.items() if until > now}
                if len(self._until) >= self._MAX_VERSIONS:
                    self._until.clear()
            self._until[version] = now + wait_for
            return True

    def forget(self, version: tuple[str, bytes, float]) -> None:
        """Ask again at the next read: the last one came to nothing."""
        self._until.pop(version, None)


@dataclass(slots=True)
class Ports:
    """This process's parts, as flows use them.

    Attributes:
        message_of: returns the message of a request that is to be enqueued with its claim; None: it is submitted to the
            dispatcher once it is claimed.
        load_now: returns the step that loads what requests ask for, instead of the dispatcher: in tests only.
        slow_loads: marks loads that did without `begin` and take long.
        note_taken_over: called when a reader has waited all of `wait_for`, and no worker had begun.
        note_refused: called with a loader and a worker's reason not to load: a reader of this process does.
        note_other_release: called with a loader, and the age of another release's entry that this process cannot read.
        note_served: called when a worker has loaded what a reader of this process had asked for.
        has_hook: whether anybody receives events; without a hook no event is made for each read.
    """

    config: Config
    store: Store
    listener: Listener
    clock: StoreClock
    coherence: Coherence
    l1: L1
    waiters: Waiters
    dispatcher: Dispatcher
    reader: Runner
    worker: Runner
    emit: Hook
    release_soon: Callable[[str, str], None]
    slow_loads: SlowLoads
    has_hook: bool = True
    message_of: Callable[[LoadRequest], Enqueue | None] = lambda request: None
    load_now: Callable[[Sequence[LoadRequest]], Step] | None = None
    note_taken_over: Callable[[LoadRequest], None] = lambda request: None
    note_refused: Callable[[str, str], None] = lambda loader, reason: None
    note_other_release: Callable[[str, float], None] = lambda loader, age: None
    note_served: Callable[[], None] = lambda: None
    access_counter: AccessCounter = field(default_factory=AccessCounter)
    recent_requests: RecentRequests = field(default_factory=RecentRequests)
    tag_kinds: TagKinds = field(default_factory=TagKinds)
    other_release_entries: OtherReleaseEntries = field(default_factory=OtherReleaseEntries)
    forecasts: dict[str, ReadForecasts] = field(default_factory=dict)
    chance: Callable[[], float] = random.random
    revalidations: RateLimiter = field(init=False)

    def __post_init__(self) -> None:
        self.revalidations = RateLimiter(self.config.revalidate_rate)


def submit(ports: Ports, requests: Sequence[LoadRequest]) -> Flow[int]:
    """Hand requests to the dispatcher; how many, from the first on, it took."""
    if ports.load_now is None:
        return ports.dispatcher.submit_all(requests)
    taken: int = yield ports.load_now(requests)
    return taken
