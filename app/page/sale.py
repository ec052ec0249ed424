"""The sale: crowd, panels, counts and what `make up` lets us break, as one stream of messages for the page."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.database import engine
from app.models import Product
from app.page import control
from app.page.control import NOT_OURS, Refused, State
from app.page.lines import Helper
from app.page.messages import Message, Outcome, Stage, Tick, side_tick
from app.page.price_race import PriceRace
from app.page.queries import count
from app.page.traffic import HOT_PRODUCTS, NORMAL_RATE, Mode, Report, Setting

log = logging.getLogger(__name__)

#: How many half seconds the charts show.
KEPT = 120
OUTCOMES = 30
#: A crowd that nobody watches goes home after this many seconds.
WATCHED_WITHIN = 10.0
READY_WITHIN = 60.0
#: Messages that one reader may be behind; then it must connect again.
BEHIND = 200


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
        self._race = PriceRace(self)
        self._totals = [0, 0]
        self._state = State()
        self._why_not: dict[str, str] = {}
        self._traffic: Helper | None = None
        self._stopped: tuple[float, tuple[int, int], Outcome] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.actions: dict[str, Callable[[], Awaitable[str]]] = {
            "normal": lambda: self._set_mode("normal"),
            "sale": lambda: self._set_mode("sale"),
            "idle": lambda: self._set_mode("idle"),
            "compare": self._compare,
            "price": self._race.start,
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
                log.exception("the sale failed; it start over in a second")
                await asyncio.sleep(1.0)

    async def _run(self) -> None:
        products = await self._products()
        self._traffic = Helper(["app.page.traffic", str(products)], Report, self._reports.put_nowait)
        self._traffic.order(self._setting)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._traffic.run())
            tasks.create_task(self._race.run())
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
        """End every reader's stream."""
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
                cached=side_tick(report.cached, now - at, before, counted, "cached"),
                uncached=side_tick(report.uncached, now - at, before, counted, "uncached"),
                # The last answers come when nothing is asked any more: in no second of the side's own.
                kinds={name: n / (report.cached.seconds or now - at) for name, n in report.cached.kinds.items()},
                counted_by=counted.source if counted else "",
                state=self._state,
                why_not=self._why_not,
                panels=tuple(self._race.panels),
            )
            before, at = counted, now
            self._ticks.append(tick)
            self.send("tick", tick)
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

    # -- what readers receive

    def _hello(self) -> Message:
        hello = {
            "boot": self._boot,
            "api": os.environ.get("WEB_URL", ""),
            "flower": os.environ.get("FLOWER_URL", ""),
            "ticks": list(self._ticks),
            "outcomes": list(self._outcomes.values()),
            "race": self._race.last,
        }
        return Message("hello", msgspec.json.encode(hello))

    def send(self, event: str, data: Any) -> None:
        """Send an event to every reader; one that is too far behind is let go, to connect again."""
        message = Message(event, msgspec.json.encode(data))
        for queue in list(self._readers):
            try:
                queue.put_nowait(message)
            except asyncio.QueueFull:
                self._readers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)

    def say(self, action: str, stage: Stage, text: str, number: int = 0) -> Outcome:
        """Send what an action resulted in; with the number of an earlier outcome, in its place."""
        earlier = self._outcomes.get(number)
        number = number or next(self._numbers)
        outcome = Outcome(number, earlier.at if earlier else time.time(), action, stage, text)
        self._outcomes[number] = outcome
        while len(self._outcomes) > OUTCOMES:
            del self._outcomes[next(iter(self._outcomes))]
        self.send("outcome", outcome)
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
        return self.say(mode, "done", texts[mode]).text

    async def _compare(self) -> str:
        is_compared = not self._setting.is_compared
        self._order(Setting(self._setting.mode, is_compared))
        text = "The uncached twin gets the same crowd." if is_compared else "The uncached twin rests."
        return self.say("compare", "done", text).text

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
        number = self.say("kill", "going", f"{text} It is being started again.").number

        async def follow() -> None:
            while time.monotonic() - begun < READY_WITHIN:
                await asyncio.sleep(0.1)
                now = {each.name: each for each in (await control.ask("state")).workers}.get(worker.name)
                if now is not None and now.restarts > worker.restarts and now.is_ready:
                    back = f"Process {now.pid} took its place after {time.monotonic() - begun:.1f} s"
                    self.say("kill", "done", f"{text} {back}; {self._since(totals)}.", number)
                    return
            self.say("kill", "failed", f"{text} It is not ready again after {READY_WITHIN:g} s.", number)

        self._follow(follow(), "kill", number)
        return text

    async def _stop_store(self) -> str:
        before = await control.ask("state")
        if before.store_pid == 0:
            raise Refused("the store is stopped already")
        at, totals = time.monotonic(), (self._totals[0], self._totals[1])
        await control.ask("stop-store")
        text = f"The store, process {before.store_pid}, is stopped. Reads go on from memory and the database."
        outcome = self.say("stop-store", "going", text)
        self._stopped = at, totals, outcome
        return text

    async def _start_store(self) -> str:
        if (await control.ask("state")).store_pid:
            raise Refused("the store runs already")
        now = await control.ask("start-store")
        text = f"The store is back, process {now.store_pid}"
        if self._stopped is not None:
            at, totals, outcome = self._stopped
            self._stopped = None
            self.say("stop-store", "done", outcome.text, outcome.number)
            text += f", after {time.monotonic() - at:.1f} s; {self._since(totals)}"
        return self.say("start-store", "done", f"{text}.").text

    def _follow(self, work: Any, action: str, number: int) -> None:
        """See an action through in the background."""

        async def guarded() -> None:
            try:
                await work
            except Refused as error:
                self.say(action, "failed", str(error), number)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
