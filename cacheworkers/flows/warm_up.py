"""Warm up: load many calls before anybody reads them, watching each until it is there, and no faster than is harmless.

What is fresh already is passed over, so that a job that was killed is resumed by starting it again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow, Step
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.flows.warm import BUSY, Queued, is_fresh_for
from cacheworkers.local.throttle import Throttle
from cacheworkers.store.store import Backoff, Claimed

#: Seconds between two looks at what is under way: a look is a command for each call.
LOOK_EVERY = 0.05
#: Seconds between two looks at what has failed, which is seldom.
FAILED_EVERY = 0.5
#: Seconds between two looks at the miss queue.
ASK_EVERY = 0.5
#: A load may take this much longer than its deadline until it counts as lost, seconds: its message was queued.
LOST_AFTER = 30.0
#: A call that somebody else is loading is claimed again after so many seconds.
HELD_FOR = 1.0


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
    is_ours: bool


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
    state = WarmUp(len(calls))
    throttle = Throttle(at_once, first=ports.config.batch_size if loader.is_batch else 8)
    left = list(reversed(calls))
    asked: dict[str, _Asked] = {}
    clock = ports.clock
    most_budget = max(max_rate * ASK_EVERY, 1.0)
    budget, budgeted_at = 1.0, clock.monotonic()
    misses_at = failed_at = float("-inf")
    while (left or asked) and state.share < until:
        now = clock.monotonic()
        if now - misses_at >= ASK_EVERY:
            misses_at = now
            waiting: Queued = yield queued()
            state.is_waiting = waiting.miss > BUSY
            if state.is_waiting:
                throttle.halve()
        budget = min(budget + (now - budgeted_at) * max_rate, most_budget)
        budgeted_at = now
        most = min(len(left), ports.config.batch_size)
        room = 0 if state.is_waiting else min(throttle.window - len(asked), int(budget), most)
        # Calls are asked for together: a message with one of them would be a query with one key.
        if room >= max(1, min(most, throttle.window // 2, int(most_budget))):
            chunk = [left.pop() for _ in range(room)]
            budget -= yield from _ask(ports, loader, chunk, lead, state, asked)
        else:
            yield pause(LOOK_EVERY)
        if asked:
            yield from _look(ports, asked, state, throttle)
        if asked and now - failed_at >= FAILED_EVERY:
            failed_at = now
            left += yield from _look_for_failed(ports, asked, state)
        state.window = throttle.window
        progress(state)
    return state


def _ask(
    ports: Ports, loader: LoaderSpec, chunk: list[str], lead: float, state: WarmUp, asked: dict[str, _Asked]
) -> Flow[int]:
    """Ask for what is not fresh; how many that were."""
    raws = yield ports.store.heads(chunk)
    now = ports.clock.now()
    wanted = []
    for call, raw in zip(chunk, raws, strict=True):
        if is_fresh_for(envelope.head_of(raw), now, lead):
            state.fresh += 1
        else:
            wanted.append((call, secrets.token_hex(8), envelope.version_of(raw)))
    if not wanted:
        return 0
    claims = yield ports.store.claim_many(wanted, lease_for=loader.load_for)
    now = ports.clock.monotonic()
    asks = []
    for (call, token, seen), claim in zip(wanted, claims, strict=True):
        if isinstance(claim, Backoff):
            _failed(state, call)
            continue
        is_ours = isinstance(claim, Claimed)  # else somebody is at it, or has just loaded it: looks find out
        asked[call] = _Asked(seen, now + (loader.load_for + LOST_AFTER if is_ours else HELD_FOR), is_ours)
        if is_ours:
            asks.append(Ask(loader.name, call, token, seen.hex(), "warm"))
    taken = ports.dispatcher.submit_all(asks)
    for left in asks[taken:]:
        ports.release_soon(left.call, left.token)
        del asked[left.call]
        _failed(state, left.call)
    return len(asks)


def _look(ports: Ports, asked: dict[str, _Asked], state: WarmUp, throttle: Throttle) -> Flow[None]:
    """Take off what has been loaded."""
    calls = list(asked)
    raws = yield ports.store.heads(calls)
    for call, raw in zip(calls, raws, strict=True):
        if raw is None or envelope.version_of(raw) == asked[call].seen:
            continue
        del asked[call]
        state.loaded += 1
        head = envelope.head_of(raw)
        if head is not None:  # else another layout, of a newer deploy: loaded it is
            throttle.note(head.load_time)


def _look_for_failed(ports: Ports, asked: dict[str, _Asked], state: WarmUp) -> Flow[list[str]]:
    """Take off what has failed or was lost; return what is to be asked for again."""
    calls = list(asked)
    again = []
    backoffs = yield ports.store.failing_until(calls)
    for call, backoff_until in zip(calls, backoffs, strict=True):
        is_over = ports.clock.monotonic() > asked[call].until
        if is_over and not asked[call].is_ours:  # whoever was at it may have died, or given it up
            del asked[call]
            again.append(call)
        elif is_over or backoff_until > ports.clock.now():
            del asked[call]
            _failed(state, call)
    return again


def _failed(state: WarmUp, call: str) -> None:
    state.failed += 1
    if len(state.failures) < 20:
        state.failures.append(call)
