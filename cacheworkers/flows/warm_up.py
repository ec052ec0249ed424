"""The flow of a warm job: have many calls loaded before anybody reads them, and follow each until it is stored.

What is fresh already is passed over, so that a job that was killed is resumed by starting it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.schema_fingerprint import fits
from cacheworkers.core.tokens import new_token
from cacheworkers.flows.keep_warm import BUSY, CHUNK, Queued, is_fresh_for
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports, submit
from cacheworkers.local.queue_monitor import QueueMonitor
from cacheworkers.store.commands.replies import Backoff, Claimed

#: Calls a second, when there is no other limit than that nobody is to notice.
UNLIMITED = 1e9
#: Seconds between two looks at what is under way, if that is much: a look is a command for each call ...
CHECK_EVERY = 0.05
#: ... of this many calls or more; smaller jobs are polled proportionally more often ...
CHECKED_CALLS = 100
#: ... but never closer than this, seconds.
CHECK_SOONEST = 0.005
#: Calls under way at first; more as long as the queue stays short.
FIRST_WINDOW = 8
#: Seconds between two looks at what has failed or was lost, which is seldom.
LOST_EVERY = 0.5
#: Seconds between two looks at the miss queue.
ASK_EVERY = 0.5
#: Misses are waited for as long as workers take some.  If none is taken for this many seconds, nobody serves the queue.
MISSES_FOR = 30.0
#: Where nothing of a job, nor of the queue, has moved for this much longer than a load's deadline, seconds, its calls
#: count as lost.  For so long, too, may the broker take no messages.
LOST_AFTER = 30.0
#: A batch is sent whole, or after this many seconds if there is no room for all of it.
PATIENCE = 0.5
#: How many times a call is requested whose load comes to nothing: each may occupy a worker until it is interrupted.
TRIES = 3


class WarmUp(msgspec.Struct):
    """How far a warm-up is.

    Attributes:
        calls: all of them.
        fresh: those that were there already.
        loaded: those that workers have loaded.
        failed: those whose load failed, or was lost, or of which another release has stored an entry that is fresh;
            `failures` names some of them.
        window: how many may be under way now.
        is_waiting: readers' misses are queued, so nothing new is asked for.
        unserved_misses: readers' misses that no worker has taken for so long that they are waited for no longer.
        stuck_for: seconds for which messages have waited on the `warm` queue, and no worker has taken one.
        still_fresh: how many of all were fresh when it had ended; None until then.
    """

    calls: int
    fresh: int = 0
    loaded: int = 0
    failed: int = 0
    failures: list[str] = []
    window: int = 0
    is_waiting: bool = False
    unserved_misses: int = 0
    stuck_for: float = 0.0
    still_fresh: int | None = None

    @property
    def done(self) -> int:
        """Calls that need nothing more."""
        return self.fresh + self.loaded

    @property
    def share(self) -> float:
        """What is fresh, of all; 1 for none.  While it goes on, what has been; once it has ended, what still is."""
        fresh = self.done if self.still_fresh is None else self.still_fresh
        return fresh / self.calls if self.calls else 1.0


class _RequestedCall(msgspec.Struct):
    """A call that a worker has been asked for, by this job or another process, and when."""

    seen: bytes
    at: float


class _Job:
    """What one warm-up has to do, and has under way.

    Attributes:
        concurrency: most calls under way.
        window: most calls under way now.
        left: calls that are still to be asked for, the next at the end.
        asked: those that are under way.
        tries: how often a call was asked for that is not there.
        asked_at: when the last were asked for, or it began.
        refused_at: since when the dispatcher has taken nothing; None while it does.
        misses: readers' misses that wait for workers.
        queued: messages of ours, or of others who warm, that wait for workers.
        moved_at: when it was last seen that something was loaded, or failed.
    """

    def __init__(self, ports: Ports, loader: LoaderSpec, calls: Sequence[str], lead: float, concurrency: int) -> None:
        self.ports, self.loader, self.lead, self.concurrency = ports, loader, lead, concurrency
        self.state = WarmUp(len(calls))
        self.window = min(concurrency, ports.config.batch_size if loader.is_batch else FIRST_WINDOW)
        self.left = list(reversed(calls))
        self.asked: dict[str, _RequestedCall] = {}
        self.tries: Counter[str] = Counter()
        self.asked_at = ports.clock.monotonic()
        self.refused_at: float | None = None
        self.moved_at = self.asked_at
        self.misses, self.queued = QueueMonitor(self.asked_at), QueueMonitor(self.asked_at)

    def note_queued(self, queued: Queued) -> None:
        """Note how many messages wait: with few a window that is full grows by a half, with many it halves."""
        now, state = self.ports.clock.monotonic(), self.state
        self.misses.note(queued.miss, queued.oldest_miss, now)
        self.queued.note(queued.warm, queued.oldest_warm, now)
        are_unserved = self.misses.stuck_for(now) > MISSES_FOR
        state.is_waiting = queued.miss > BUSY and not are_unserved
        state.unserved_misses = queued.miss if are_unserved else 0
        state.stuck_for = self.queued.stuck_for(now)
        # Beat does no rounds while that many are queued; with half as many there is room for more.
        if state.is_waiting or queued.warm > BUSY:
            self.window = max(1, self.window // 2)
        elif queued.warm <= BUSY // 2 and len(self.asked) >= self.window:
            self.window = min(self.concurrency, self.window + max(1, self.window // 2))

    def is_believed(self, asked: _RequestedCall) -> bool:
        """Return whether a call may still be loaded: its time has not come, or there are others before it."""
        moved_at = max(self.moved_at, self.queued.taken_at, asked.at)
        return self.ports.clock.monotonic() <= moved_at + self.loader.load_for + LOST_AFTER


def warm_up(
    ports: Ports,
    loader: LoaderSpec,
    calls: Sequence[str],
    *,
    lead: float,
    max_rate: float,
    concurrency: int,
    min_fresh: float,
    pause: Callable[[float], Step],
    queued: Callable[[], Step],
    progress: Callable[[WarmUp], None],
) -> Flow[WarmUp]:
    """Load calls of one loader until so large a share of them is fresh, or none is left; then look at all once more.

    Args:
        lead: seconds for which an entry must still be fresh to be passed over.
        max_rate: most calls a second.
        concurrency: most calls under way.
        min_fresh: a share, 0 to 1.
        pause: makes the step that waits a number of seconds.
        queued: makes the step that returns how many messages are `Queued`.
        progress: called after each look with how far it is.
    """
    job = _Job(ports, loader, calls, lead, concurrency)
    state, clock = job.state, ports.clock
    most_budget = max(max_rate * ASK_EVERY, 1.0)
    budget, budgeted_at = 1.0, clock.monotonic()
    misses_at = lost_at = float("-inf")
    while (job.left or job.asked) and state.share < min_fresh:
        now = clock.monotonic()
        if now - misses_at >= ASK_EVERY:
            misses_at = now
            job.note_queued((yield queued()))
        budget = min(budget + (now - budgeted_at) * max_rate, most_budget)
        budgeted_at = now
        room = 0 if state.is_waiting else _room(job, budget, most_budget)
        if room:
            budget -= yield from _ask(job, [job.left.pop() for _ in range(room)])
            is_idle = job.refused_at is not None
        else:
            is_idle = True
        if is_idle:
            yield pause(_until_check(job))
        if job.asked:
            yield from _note_loaded(job)
        if job.asked and now - lost_at >= LOST_EVERY:
            lost_at = now
            yield from _drop_lost(job)
        state.window = _window(job)
        progress(state)
    state.still_fresh = yield from _count_fresh(ports, loader, calls)
    return state


def _count_fresh(ports: Ports, loader: LoaderSpec, calls: Sequence[str]) -> Flow[int]:
    """Return how many are fresh now: the first may have expired when the last has been loaded."""
    fresh = 0
    for start in range(0, len(calls), CHUNK):
        raws = yield ports.store.heads(calls[start : start + CHUNK])
        now = ports.clock.now()
        heads = map(envelope.head_of, raws)
        fresh += sum(head is not None and now < head.fresh_until and _is_readable(loader, head) for head in heads)
    return fresh


def _is_readable(loader: LoaderSpec, head: envelope.Head | None) -> bool:
    """Return whether readers of this release may decode an entry, as `envelope.entry_of` says."""
    return head is not None and fits(head.fingerprint, loader.fingerprint)


def _room(job: _Job, budget: float, most_budget: float) -> int:
    """Return how many calls to ask for now: as many as go into one message, or none until there is room for them.

    A message with a few of them would be a query with a few keys.
    """
    size, window = job.ports.config.batch_size, _window(job)
    least = window // 2
    # Another process may hold one of a batch for long: then the job goes on without its room.
    if job.loader.is_batch and job.ports.clock.monotonic() < job.asked_at + PATIENCE:
        least = window
    most = min(len(job.left), size)
    room = min(window - len(job.asked), int(budget), most)
    return room if room >= max(1, min(most, least, int(most_budget))) else 0


def _window(job: _Job) -> int:
    """Return how many calls may be under way: of a batch loader whole batches, and one at least.

    Smaller ones would be more queries, and harder on a database that is slow.
    """
    window = job.window
    if not job.loader.is_batch:
        return window
    size = job.ports.config.batch_size
    return min(job.concurrency, -(-window // size) * size)


def _until_check(job: _Job) -> float:
    """Return how long to wait before what is under way is looked at, seconds.

    A short window is soon done, and would otherwise stand idle most of the time; a batch is never that short.
    """
    if job.loader.is_batch or not job.asked:
        return CHECK_EVERY
    return min(CHECK_EVERY, max(CHECK_SOONEST, CHECK_EVERY * len(job.asked) / CHECKED_CALLS))


def _ask(job: _Job, chunk: list[str]) -> Flow[int]:
    """Ask for what is not fresh; how many that were."""
    ports, loader = job.ports, job.loader
    job.asked_at = ports.clock.monotonic()
    raws = yield ports.store.heads(chunk)
    now = ports.clock.now()
    due = []
    for call, raw in zip(chunk, raws, strict=True):
        head = envelope.head_of(raw)
        if not is_fresh_for(head, now, job.lead):
            due.append((call, new_token(), envelope.version_of(raw)))
        elif _is_readable(loader, head):
            job.state.fresh += 1
        else:  # another release's is left alone while it is fresh, as readers of this one do
            _failed(job, call)
    if not due:
        return 0
    claims = yield ports.store.claim_many(due, lease_for=loader.load_for, warms=True)
    now = ports.clock.monotonic()
    asks = []
    for (call, token, seen), claim in zip(due, claims, strict=True):
        if isinstance(claim, Backoff):
            _failed(job, call)
            continue
        # Not claimed, somebody is at it, or has just loaded it: looks find out.
        job.asked[call] = _RequestedCall(seen, now)
        if isinstance(claim, Claimed):
            asks.append(LoadRequest(loader.name, call, token, seen.hex(), "warm"))
    taken = yield from submit(ports, asks)
    if taken or not asks:
        job.refused_at = None
    elif job.refused_at is None:
        job.refused_at = now
    for ask in asks[taken:]:
        ports.release_soon(ask.call, ask.token)
        del job.asked[ask.call]
        # A broker that hangs for a moment costs that moment.
        if job.refused_at is not None and now - job.refused_at > LOST_AFTER:
            _failed(job, ask.call)
        else:
            job.left.append(ask.call)
    return taken


def _note_loaded(job: _Job) -> Flow[None]:
    """Take off what has been loaded, for this release or another."""
    calls = list(job.asked)
    raws = yield job.ports.store.heads(calls)
    now = job.ports.clock.monotonic()
    for call, raw in zip(calls, raws, strict=True):
        if raw is None or envelope.version_of(raw) == job.asked[call].seen:
            continue
        del job.asked[call]
        job.moved_at = now
        if _is_readable(job.loader, envelope.head_of(raw)):
            job.state.loaded += 1
        else:
            _failed(job, call)


def _drop_lost(job: _Job) -> Flow[None]:
    """Remove what has failed, and what nobody loads; the latter is asked for again, a few times."""
    ports = job.ports
    calls = list(job.asked)
    # Before what is there: the other way round, an entry that is written in between would count as lost.
    are_claimed: list[bool] = yield ports.store.are_claimed(calls)
    backoffs: list[float] = yield ports.store.failing_until(calls)
    yield from _note_loaded(job)
    now = ports.clock.now()
    if any(call in job.asked and at > now for call, at in zip(calls, backoffs, strict=True)):
        job.moved_at = ports.clock.monotonic()
    for call, is_claimed, backoff_until in zip(calls, are_claimed, backoffs, strict=True):
        if call not in job.asked:
            continue
        if backoff_until > now or not job.is_believed(job.asked[call]):
            del job.asked[call]
            _failed(job, call)
        elif not is_claimed and not job.queued.length:
            # Its message did not go out, or its worker has died, or given it up.  While messages are queued it may be
            # among them: its lease has run out, and a worker will load it all the same.
            del job.asked[call]
            job.tries[call] += 1
            if job.tries[call] < TRIES:
                job.left.insert(0, call)  # after all others: if it is the call that kills workers, they are done
            else:
                _failed(job, call)


def _failed(job: _Job, call: str) -> None:
    job.state.failed += 1
    if len(job.state.failures) < 20:
        job.state.failures.append(call)
