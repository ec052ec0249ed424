"""Warm up: load many calls before anybody reads them, watching each until it is there, and no faster than is harmless.

What is fresh already is passed over, so that a job that was killed is resumed by starting it again.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow, Step
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.flows.warm import BUSY, Queued, is_fresh_for
from cacheworkers.local.throttle import Throttle
from cacheworkers.store.shapes import Backoff, Claimed

#: Calls a second, when there is no other limit than that nobody is to notice.
AS_FAST_AS_HARMLESS = 1e9
#: Seconds between two looks at what is under way: a look is a command for each call.
LOOK_EVERY = 0.05
#: Seconds between two looks at what has failed or was lost, which is seldom.
LOST_EVERY = 0.5
#: Seconds between two looks at the miss queue.
ASK_EVERY = 0.5
#: A load may take this much longer than its deadline until it counts as lost, seconds: its message was queued.  For so
#: long, too, may the broker take no messages.
LOST_AFTER = 30.0
#: A batch is whole, or waits for so many seconds until there is room for all of it.
PATIENCE = 0.5
#: A call whose load comes to nothing is asked for so many times: each may hold up a worker until it is interrupted.
TRIES = 3


class WarmUp(msgspec.Struct):
    """How far a warm-up is.

    Attributes:
        calls: all of them.
        fresh: those that were there already.
        loaded: those that workers have loaded.
        failed: those whose load failed, or was lost; `failures` names some of them.
        window: how many may be under way now.
        is_waiting: readers' misses are queued, so nothing new is asked for.
    """

    calls: int
    fresh: int = 0
    loaded: int = 0
    failed: int = 0
    failures: list[str] = []
    window: int = 0
    is_waiting: bool = False

    @property
    def done(self) -> int:
        """Calls that need nothing more."""
        return self.fresh + self.loaded

    @property
    def share(self) -> float:
        """What is fresh, of all; 1 for none."""
        return self.done / self.calls if self.calls else 1.0


class _Asked(msgspec.Struct):
    """A call that a worker has been asked for, by us or by somebody else; until when that is believed."""

    seen: bytes
    until: float


class _Job:
    """What one warm-up has to do, and has under way.

    Attributes:
        at_once: most calls under way.
        left: calls that are still to be asked for, the next at the end.
        asked: those that are under way.
        tries: how often a call was asked for that is not there.
        asked_at: when the last were asked for, or it began.
        refused_at: since when the dispatcher has taken nothing; None while it does.
        is_queued: whether messages of ours, or of others who warm, wait for workers.
    """

    def __init__(self, ports: Ports, loader: LoaderSpec, calls: Sequence[str], lead: float, at_once: int) -> None:
        self.ports, self.loader, self.lead, self.at_once = ports, loader, lead, at_once
        self.state = WarmUp(len(calls))
        self.throttle = Throttle(at_once, first=ports.config.batch_size if loader.is_batch else 8)
        self.left = list(reversed(calls))
        self.asked: dict[str, _Asked] = {}
        self.tries: Counter[str] = Counter()
        self.asked_at = ports.clock.monotonic()
        self.refused_at: float | None = None
        self.is_queued = False


def warm_up(
    ports: Ports,
    loader: LoaderSpec,
    calls: Sequence[str],
    *,
    lead: float,
    max_rate: float,
    at_once: int,
    until: float,
    pause: Callable[[float], Step],
    queued: Callable[[], Step],
    progress: Callable[[WarmUp], None],
) -> Flow[WarmUp]:
    """Load calls of one loader until so large a share of them is fresh, or none is left.

    Args:
        lead: seconds for which an entry must still be fresh to be passed over.
        max_rate: most calls a second.
        at_once: most calls under way.
        until: a share, 0 to 1.
        pause: makes the step that waits so many seconds.
        queued: makes the step that returns how many messages are `Queued`.
        progress: called after each look with how far it is.
    """
    job = _Job(ports, loader, calls, lead, at_once)
    state, throttle, clock = job.state, job.throttle, ports.clock
    most_budget = max(max_rate * ASK_EVERY, 1.0)
    budget, budgeted_at = 1.0, clock.monotonic()
    misses_at = lost_at = float("-inf")
    while (job.left or job.asked) and state.share < until:
        now = clock.monotonic()
        if now - misses_at >= ASK_EVERY:
            misses_at = now
            waiting: Queued = yield queued()
            state.is_waiting = waiting.miss > BUSY
            job.is_queued = waiting.warm > 0
            if state.is_waiting:
                throttle.halve()
        budget = min(budget + (now - budgeted_at) * max_rate, most_budget)
        budgeted_at = now
        room = 0 if state.is_waiting else _room(job, budget, most_budget)
        if room:
            budget -= yield from _ask(job, [job.left.pop() for _ in range(room)])
            is_idle = job.refused_at is not None
        else:
            is_idle = True
        if is_idle:
            yield pause(LOOK_EVERY)
        if job.asked:
            yield from _look(job)
        if job.asked and now - lost_at >= LOST_EVERY:
            lost_at = now
            yield from _look_for_lost(job)
        state.window = _window(job)
        progress(state)
    return state


def _room(job: _Job, budget: float, most_budget: float) -> int:
    """Return how many calls to ask for now: as many as go into one message, or none until there is room for them.

    A message with a few of them would be a query with a few keys.
    """
    size, window = job.ports.config.batch_size, _window(job)
    least = window // 2
    # One of a batch may be held for long by somebody else: then its room is done without.
    if job.loader.is_batch and job.ports.clock.monotonic() < job.asked_at + PATIENCE:
        least = window
    most = min(len(job.left), size)
    room = min(window - len(job.asked), int(budget), most)
    return room if room >= max(1, min(most, least, int(most_budget))) else 0


def _window(job: _Job) -> int:
    """Return how many calls may be under way: of a batch loader whole batches, and one at least.

    Smaller ones would be more queries, and harder on a database that is slow.
    """
    window = job.throttle.window
    if not job.loader.is_batch:
        return window
    size = job.ports.config.batch_size
    return min(job.at_once, -(-window // size) * size)


def _ask(job: _Job, chunk: list[str]) -> Flow[int]:
    """Ask for what is not fresh; how many that were."""
    ports, loader = job.ports, job.loader
    job.asked_at = ports.clock.monotonic()
    raws = yield ports.store.heads(chunk)
    now = ports.clock.now()
    wanted = []
    for call, raw in zip(chunk, raws, strict=True):
        if is_fresh_for(envelope.head_of(raw), now, job.lead):
            job.state.fresh += 1
        else:
            wanted.append((call, secrets.token_hex(8), envelope.version_of(raw)))
    if not wanted:
        return 0
    claims = yield ports.store.claim_many(wanted, lease_for=loader.load_for, warms=True)
    now = ports.clock.monotonic()
    asks = []
    for (call, token, seen), claim in zip(wanted, claims, strict=True):
        if isinstance(claim, Backoff):
            _failed(job, call)
            continue
        # Not claimed, somebody is at it, or has just loaded it: looks find out.
        job.asked[call] = _Asked(seen, now + loader.load_for + LOST_AFTER)
        if isinstance(claim, Claimed):
            asks.append(Ask(loader.name, call, token, seen.hex(), "warm"))
    taken = ports.dispatcher.submit_all(asks)
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


def _look(job: _Job) -> Flow[None]:
    """Take off what has been loaded."""
    calls = list(job.asked)
    raws = yield job.ports.store.heads(calls)
    for call, raw in zip(calls, raws, strict=True):
        if raw is None or envelope.version_of(raw) == job.asked[call].seen:
            continue
        del job.asked[call]
        job.state.loaded += 1
        head = envelope.head_of(raw)
        if head is not None:  # else another layout, of a newer deploy: loaded it is
            job.throttle.note(head.load_time)


def _look_for_lost(job: _Job) -> Flow[None]:
    """Take off what has failed, and what nobody is at any more; that is asked for again, a few times."""
    ports = job.ports
    calls = list(job.asked)
    # Before what is there: the other way round, an entry that is written in between would count as lost.
    are_claimed: list[bool] = yield ports.store.are_claimed(calls)
    backoffs: list[float] = yield ports.store.failing_until(calls)
    yield from _look(job)
    for call, is_claimed, backoff_until in zip(calls, are_claimed, backoffs, strict=True):
        if call not in job.asked:
            continue
        if backoff_until > ports.clock.now() or ports.clock.monotonic() > job.asked[call].until:
            del job.asked[call]
            _failed(job, call)
        elif not is_claimed and not job.is_queued:
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
