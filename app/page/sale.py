"""The sale: crowd, panels, counts and what `make up` lets us break, as one stream of messages for the page."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.database import engine
from app.models import Product
from app.page import control
from app.page.control import NOT_OURS, Refused, State
from app.page.lines import Helper
from app.page.panels import HOT, PANELS, Race, Seen
from app.page.queries import Count, count
from app.page.traffic import HOT_PRODUCTS, NORMAL_RATE, Mode, Report, Setting, SideReport

log = logging.getLogger(__name__)

#: How many half seconds the charts show.
KEPT = 120
OUTCOMES = 30
#: A crowd that nobody watches goes home after so many seconds.
WATCHED_WITHIN = 10.0
READY_WITHIN = 60.0
WATCHING_WITHIN = 1.0
#: Messages that one reader may be behind; then it must connect anew.
BEHIND = 200

Stage = Literal["going", "done", "failed"]


class SideTick(msgspec.Struct, frozen=True):
    """One side in one tick; rates a second, milliseconds, None where nothing is known."""

    rate: float | None
    queries: float | None
    p50: float | None
    p99: float | None
    failed: int


class Tick(msgspec.Struct, frozen=True):
    """Half a second of the sale.

    Attributes:
        kinds: "l1", "store", "stale", "miss" -> answers a second.
        counted_by: what Postgres counts with; empty if it does not answer.
        why_not: action -> why it cannot be done now.
    """

    at: float
    mode: Mode
    is_compared: bool
    cached: SideTick
    uncached: SideTick
    kinds: dict[str, float]
    counted_by: str
    state: State
    why_not: dict[str, str]
    panels: tuple[Seen | None, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What an action came to; told again with the same number as it goes on."""

    number: int
    at: float
    action: str
    stage: Stage
    text: str


class RaceState(msgspec.Struct):
    """A price change on its way to the panels; amounts in cents, `seen` in milliseconds after the commit."""

    number: int
    before: int
    amount: int
    seen: list[float | None]
    committed_at: float | None = None


class Message(msgspec.Struct, frozen=True):
    """One server-sent event."""

    event: str
    data: bytes


class Sale:
    """Everything behind the page; `run` it beside the server."""

    def __init__(self) -> None:
        self._boot = f"{os.getpid()}-{time.time():.0f}"
        self._ticks: collections.deque[Tick] = collections.deque(maxlen=KEPT)
        self._outcomes: dict[int, Outcome] = {}
        self._numbers = itertools.count(1)
        self._readers: set[asyncio.Queue[Message | None]] = set()
        self._watched_at = time.monotonic()
        self._setting = Setting("idle", True)
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._panels: list[Seen | None] = [None] * PANELS
        self._race: RaceState | None = None
        self._race_outcome: Outcome | None = None
        self._watching: set[int] = set()
        self._all_watch = asyncio.Event()
        self._totals = [0, 0]
        self._state = State()
        self._why_not: dict[str, str] = {}
        self._panel_helper = Helper(["app.page.panels"], Seen, self._saw)
        self._traffic: Helper | None = None
        self._stopped: tuple[float, tuple[int, int]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.actions: dict[str, Callable[[], Awaitable[str]]] = {
            "normal": lambda: self._set_mode("normal"),
            "sale": lambda: self._set_mode("sale"),
            "idle": lambda: self._set_mode("idle"),
            "compare": self._compare,
            "price": self._change_price,
            "kill": self._kill,
            "stop-store": self._stop_store,
            "start-store": self._start_store,
        }

    # -- for the server

    async def run(self) -> None:
        """Run crowd, panels and clock until cancelled, whatever fails."""
        while True:
            try:
                await self._run()
            except Exception:
                log.exception("the sale failed; it begins anew in a second")
                await asyncio.sleep(1.0)

    async def _run(self) -> None:
        products = await self._products()
        self._traffic = Helper(["app.page.traffic", str(products)], Report, self._reports.put_nowait)
        self._traffic.order(self._setting)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._traffic.run())
            tasks.create_task(self._panel_helper.run())
            tasks.create_task(self._tick())

    @contextlib.contextmanager
    def messages(self) -> Iterator[asyncio.Queue[Message | None]]:
        """Yield a queue of messages, first all that a new page needs; None at the end."""
        queue: asyncio.Queue[Message | None] = asyncio.Queue(BEHIND)
        queue.put_nowait(self._hello())
        self._readers.add(queue)
        try:
            yield queue
        finally:
            self._readers.discard(queue)

    def end(self) -> None:
        """Tell all readers that there is no more."""
        for queue in self._readers:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    # -- the clock

    async def _tick(self) -> None:
        """Make one tick of each of the crowd's reports."""
        before, at = await asyncio.to_thread(count, engine), time.monotonic()
        while True:
            report = await self._reports.get()
            counted, now = await asyncio.to_thread(count, engine), time.monotonic()
            await self._ask_state()
            self._totals[0] += report.cached.requests
            self._totals[1] += report.cached.failed
            tick = Tick(
                at=time.time(),
                mode=report.mode,
                is_compared=self._setting.is_compared,
                cached=_side(report.cached, now - at, before, counted, "cached"),
                uncached=_side(report.uncached, now - at, before, counted, "uncached"),
                # The last answers come when nothing is asked any more: in no second of the side's own.
                kinds={name: n / (report.cached.seconds or now - at) for name, n in report.cached.kinds.items()},
                counted_by=counted.source if counted else "",
                state=self._state,
                why_not=self._why_not,
                panels=tuple(self._panels),
            )
            before, at = counted, now
            self._ticks.append(tick)
            self._tell("tick", tick)
            self._go_home_unwatched(now)

    def _go_home_unwatched(self, now: float) -> None:
        if self._readers:
            self._watched_at = now
        elif self._setting.mode != "idle" and now - self._watched_at > WATCHED_WITHIN:
            self._order(Setting("idle", self._setting.is_compared))

    async def _ask_state(self) -> None:
        try:
            self._state = await control.ask("state")
        except Refused as error:
            self._state = State()
            self._why_not = dict.fromkeys(("kill", "stop-store", "start-store"), str(error))
            return
        is_ours = self._state.store_pid is not None
        self._why_not = {} if is_ours else dict.fromkeys(("stop-store", "start-store"), NOT_OURS)

    async def _products(self) -> int:
        """Return how many products there are, as soon as the database answers."""

        def ask() -> int:
            with engine.connect() as connection:
                return connection.execute(select(func.count()).select_from(Product)).scalar_one()

        while True:
            with contextlib.suppress(SQLAlchemyError):
                return await asyncio.to_thread(ask)
            await asyncio.sleep(1.0)

    # -- what readers are told

    def _hello(self) -> Message:
        hello = {
            "boot": self._boot,
            "api": os.environ.get("WEB_URL", ""),
            "flower": os.environ.get("FLOWER_URL", ""),
            "ticks": list(self._ticks),
            "outcomes": list(self._outcomes.values()),
            "race": self._race,
        }
        return Message("hello", msgspec.json.encode(hello))

    def _tell(self, event: str, data: Any) -> None:
        message = Message(event, msgspec.json.encode(data))
        for queue in list(self._readers):
            try:
                queue.put_nowait(message)
            except asyncio.QueueFull:
                self._readers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)

    def _say(self, action: str, stage: Stage, text: str, number: int = 0) -> Outcome:
        """Tell what an action came to; with the number of an earlier outcome, in its place."""
        earlier = self._outcomes.get(number)
        number = number or next(self._numbers)
        outcome = Outcome(number, earlier.at if earlier else time.time(), action, stage, text)
        self._outcomes[number] = outcome
        while len(self._outcomes) > OUTCOMES:
            del self._outcomes[next(iter(self._outcomes))]
        self._tell("outcome", outcome)
        return outcome

    def _since(self, totals: tuple[int, int]) -> str:
        """Return what the crowd was answered since then, in words."""
        requests, failed = self._totals[0] - totals[0], self._totals[1] - totals[1]
        return f"{requests:,} requests meanwhile, {failed:,} failed" if requests else "no traffic meanwhile"

    # -- actions

    async def _set_mode(self, mode: Mode) -> str:
        texts = {
            "normal": f"Normal traffic: {NORMAL_RATE:g} requests a second over all products, some more often.",
            "sale": f"Flash sale: a crowd asks for {HOT_PRODUCTS} products, as fast as it is answered.",
            "idle": "The traffic has stopped.",
        }
        self._order(Setting(mode, self._setting.is_compared))
        return self._say(mode, "done", texts[mode]).text

    async def _compare(self) -> str:
        is_compared = not self._setting.is_compared
        self._order(Setting(self._setting.mode, is_compared))
        text = "The uncached twin gets the same crowd." if is_compared else "The uncached twin rests."
        return self._say("compare", "done", text).text

    def _order(self, setting: Setting) -> None:
        self._setting = setting
        self._watched_at = time.monotonic()
        if self._traffic is not None:
            self._traffic.order(setting)

    async def _kill(self) -> str:
        state = await control.ask("state")
        ready = [worker for worker in state.workers if worker.is_ready]
        if not ready:
            raise Refused("no worker is ready: those that were killed are still being started again")
        worker = ready[0]
        totals, begun = (self._totals[0], self._totals[1]), time.monotonic()
        await control.ask("kill", worker.name)
        text = f"Worker {worker.name}, process {worker.pid}, was killed with kill -9."
        number = self._say("kill", "going", f"{text} It is being started again.").number

        async def follow() -> None:
            while time.monotonic() - begun < READY_WITHIN:
                await asyncio.sleep(0.1)
                now = {each.name: each for each in (await control.ask("state")).workers}.get(worker.name)
                if now is not None and now.restarts > worker.restarts and now.is_ready:
                    back = f"Process {now.pid} took its place after {time.monotonic() - begun:.1f} s"
                    self._say("kill", "done", f"{text} {back}; {self._since(totals)}.", number)
                    return
            self._say("kill", "failed", f"{text} It is not ready again after {READY_WITHIN:g} s.", number)

        self._follow(follow(), "kill", number)
        return text

    async def _stop_store(self) -> str:
        before = await control.ask("state")
        if before.store_pid == 0:
            raise Refused("the store is stopped already")
        self._stopped = time.monotonic(), (self._totals[0], self._totals[1])
        await control.ask("stop-store")
        text = f"The store, process {before.store_pid}, is stopped. Reads go on from memory and the database."
        return self._say("stop-store", "done", text).text

    async def _start_store(self) -> str:
        if (await control.ask("state")).store_pid:
            raise Refused("the store runs already")
        now = await control.ask("start-store")
        text = f"The store is back, process {now.store_pid}"
        if self._stopped is not None:
            at, totals = self._stopped
            text += f", after {time.monotonic() - at:.1f} s; {self._since(totals)}"
        return self._say("start-store", "done", f"{text}.").text

    async def _change_price(self) -> str:
        shown = next((seen for seen in self._panels if seen is not None and seen.amount), None)
        if shown is None:
            raise Refused("no panel shows a price yet")
        if self._race_outcome is not None and self._race_outcome.stage == "going":
            self._end_race("done", "overtaken by the next change")
        race = RaceState(next(self._numbers), shown.amount, _new_amount(shown.amount), [None] * PANELS)
        self._race, self._watching = race, set()
        self._all_watch.clear()
        self._panel_helper.order(Race(race.number, race.amount))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_watch.wait(), WATCHING_WITHIN)
        what = f"{shown.name}: {_money(race.before)} became {_money(race.amount)}."
        self._race_outcome = self._say("price", "going", f"{what} Waiting for the panels.")
        try:
            race.committed_at = await asyncio.to_thread(_put_price, race.amount)
        except OSError as error:
            self._panel_helper.order(Race(race.number, 0))
            self._end_race("failed", f"the API refused the price: {error}")
            raise Refused(f"the price was not changed: {error}") from error
        race.seen = [None if at is None else _after(race.committed_at, at) for at in race.seen]
        self._race_goes_on(race)
        return what

    def _saw(self, seen: Seen) -> None:
        """Take note of what a panel shows."""
        race = self._race
        if seen.amount or seen.error:
            self._panels[seen.panel] = seen
        if race is None or seen.race != race.number:
            return
        if not seen.at:
            self._watching.add(seen.panel)
            if len(self._watching) == PANELS:
                self._all_watch.set()
        elif race.committed_at is None:
            race.seen[seen.panel] = seen.at  # becomes a duration once the commit is known
        else:
            race.seen[seen.panel] = _after(race.committed_at, seen.at)
            self._race_goes_on(race)

    def _race_goes_on(self, race: RaceState) -> None:
        self._tell("race", race)
        late = [each for each in race.seen if each is not None]
        if len(late) == PANELS and race is self._race:
            self._end_race(
                "done", f"{PANELS} processes showed it {min(late):.1f} to {max(late):.1f} ms after the commit"
            )

    def _end_race(self, stage: Stage, how: str) -> None:
        outcome = self._race_outcome
        if outcome is not None and outcome.stage == "going":
            what = outcome.text.removesuffix(" Waiting for the panels.")
            self._race_outcome = self._say("price", stage, f"{what} {how[0].upper()}{how[1:]}.", outcome.number)

    def _follow(self, work: Any, action: str, number: int) -> None:
        """See an action through in the background."""

        async def guarded() -> None:
            try:
                await work
            except Refused as error:
                self._say(action, "failed", str(error), number)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _side(report: SideReport, took: float, before: Count | None, now: Count | None, name: str) -> SideTick:
    """Return a side's rates in its own time: the seconds for which it was asked."""
    seconds = report.seconds or took
    queries = None
    is_asked = name == "cached" or report.seconds > 0
    if before is not None and now is not None and before.source == now.source and is_asked:
        is_apart = now.source == "pg_stat_statements"
        queries = max(0, getattr(now, name) - getattr(before, name)) / seconds if is_apart or name == "cached" else None
    return SideTick(report.requests / seconds if is_asked else None, queries, report.p50, report.p99, report.failed)


def _put_price(amount: int) -> float:
    """Change the price through the API; return when it was committed, seconds since the epoch."""
    request = urllib.request.Request(
        f"{os.environ['WEB_URL']}/products/{HOT}/price", data=msgspec.json.encode({"amount": amount}), method="PUT"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return float(msgspec.json.decode(answer.read())["committed_at"])


def _after(committed_at: float, seen_at: float) -> float:
    """Return milliseconds from commit to sight; a panel may see it before the writer's own process notes the commit."""
    return max(0.0, 1000 * (seen_at - committed_at))


def _new_amount(amount: int) -> int:
    """Return another price that ends in 99 cents."""
    while True:
        new = 100 * random.randrange(300, 1900) - 1
        if new != amount:
            return new


def _money(amount: int) -> str:
    return f"€{amount / 100:,.2f}"
