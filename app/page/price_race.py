"""The price race: one product's price is changed through the API, and six panels race to show it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import urllib.request
from typing import Any, Protocol

import msgspec

from app.page.control import Refused
from app.page.lines import Helper
from app.page.messages import Outcome, RaceState, Stage
from app.page.panels import HOT, PANELS, Race, Seen

#: How long the panels have to say that they watch, seconds.
WATCHING_WITHIN = 1.0


class Sender(Protocol):
    """Sends events to the page."""

    def send(self, event: str, data: Any) -> None:
        """Send an event to every reader."""

    def say(self, action: str, stage: Stage, text: str, number: int = 0) -> Outcome:
        """Send what an action resulted in; with the number of an earlier outcome, in its place."""


class PriceRace:
    """The panels, what they show, and the last race.

    Attributes:
        panels: what each showed last.
        last: the last race.
    """

    def __init__(self, sender: Sender) -> None:
        self.panels: list[Seen | None] = [None] * PANELS
        self.last: RaceState | None = None
        self._sender = sender
        self._helper = Helper(["app.page.panels"], Seen, self._saw)
        self._numbers = itertools.count(1)
        self._outcome: Outcome | None = None
        self._watching: set[int] = set()
        self._all_watch = asyncio.Event()
        self._seen_at: dict[int, float] = {}

    async def run(self) -> None:
        """Keep the panels running, until cancelled."""
        await self._helper.run()

    async def start(self) -> str:
        """Change the price; return the change in words.

        Raises:
            Refused: no panel shows a price yet, or the API refused the new one.
        """
        shown = next((seen for seen in self.panels if seen is not None and seen.amount), None)
        if shown is None:
            raise Refused("no panel shows a price yet")
        self._end("done", "overtaken by the next change")
        race = RaceState(next(self._numbers), shown.amount, _new_amount(shown.amount), [None] * PANELS)
        self.last, self._watching, self._seen_at = race, set(), {}
        self._all_watch.clear()
        self._helper.order(Race(race.number, race.amount))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_watch.wait(), WATCHING_WITHIN)
        what = f"{shown.name}: {_money(race.before)} became {_money(race.amount)}."
        self._outcome = self._sender.say("price", "going", f"{what} Waiting for the panels.")
        try:
            race.committed_at = await asyncio.to_thread(_put_price, race.amount)
        except OSError as error:
            self._helper.order(Race(race.number, 0))
            self._end("failed", f"the API refused the price: {error}")
            raise Refused(f"the price was not changed: {error}") from error
        self._goes_on(race)
        return what

    def _saw(self, seen: Seen) -> None:
        """Take note of what a panel shows."""
        if seen.amount or seen.error:
            self.panels[seen.panel] = seen
        race = self.last
        if race is None or seen.race != race.number:
            return
        if seen.at:
            self._seen_at[seen.panel] = seen.at
            self._goes_on(race)
        else:
            self._watching.add(seen.panel)
            if len(self._watching) == PANELS:
                self._all_watch.set()

    def _goes_on(self, race: RaceState) -> None:
        """Report who has seen the new price so far, once it is known when it was committed."""
        if race.committed_at is None or race is not self.last:
            return
        for panel, at in self._seen_at.items():
            # A panel may see it before the writer's own process has noted the commit.
            race.seen[panel] = max(0.0, 1000 * (at - race.committed_at))
        self._sender.send("race", race)
        late = [each for each in race.seen if each is not None]
        if len(late) == PANELS:
            times = f"{_span(min(late))} to {_span(max(late))} after the commit"
            self._end("done", f"{PANELS} processes showed it {times}")

    def _end(self, stage: Stage, how: str) -> None:
        outcome = self._outcome
        if outcome is not None and outcome.stage == "going":
            what = outcome.text.removesuffix(" Waiting for the panels.")
            self._outcome = self._sender.say("price", stage, f"{what} {how[0].upper()}{how[1:]}.", outcome.number)


def _put_price(amount: int) -> float:
    """Change the price through the API; return when it was committed, seconds since the epoch."""
    request = urllib.request.Request(
        f"{os.environ['WEB_URL']}/products/{HOT}/price", data=msgspec.json.encode({"amount": amount}), method="PUT"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return float(msgspec.json.decode(answer.read())["committed_at"])


def _new_amount(amount: int) -> int:
    """Return another price that ends in 99 cents."""
    while True:
        new = 100 * random.randrange(300, 1900) - 1
        if new != amount:
            return new


def _money(amount: int) -> str:
    return f"€{amount / 100:,.2f}"


def _span(late: float) -> str:
    """Return milliseconds as the page shows them."""
    if late < 1000:
        return f"{late:.1f} ms" if late < 10 else f"{late:.0f} ms"
    return f"{late / 1000:.1f} s"
