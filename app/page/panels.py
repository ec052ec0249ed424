"""Six web processes, each with a memory of its own, that show the price of one product.

Orders come as JSON lines on stdin, what the panels see goes out as JSON lines on stdout; they end with stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import BinaryIO

import msgspec

from app.page.lines import read_lines, say

PANELS = 6
#: The product whose price is shown, and changed.
HOT = 1
LOOK_EVERY = 0.5
#: How long a panel rests between two looks while a price change is on its way.
RACE_EVERY = 0.0005


class Race(msgspec.Struct, frozen=True):
    """A price change: look for this amount (cents) from now on; 0 for none."""

    number: int
    amount: int


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one panel saw.

    Attributes:
        tier: "l1", "store" or "load"; empty if the read failed.
        race: the race that it is about; 0 for a look in between.
        at: when the race's amount was seen, seconds since the epoch; 0 where it only says that it looks.
    """

    panel: int
    pid: int
    name: str = ""
    amount: int = 0
    tier: str = ""
    freshness: str = ""
    error: str = ""
    race: int = 0
    at: float = 0.0


class Panel:
    """One web process, and what it shows."""

    def __init__(self, panel: int) -> None:
        self._panel = panel

    async def show(self, orders: BinaryIO) -> None:
        """Show the price twice a second, and race for each new one, until the orders end."""
        looking = asyncio.create_task(self._look_now_and_then())
        racing: asyncio.Task[None] | None = None
        async for race in read_lines(orders, Race):
            if racing is not None:
                racing.cancel()
            racing = asyncio.create_task(self._race(race)) if race.amount else None
        looking.cancel()

    async def _look_now_and_then(self) -> None:
        while True:
            say(await self._look())
            await asyncio.sleep(LOOK_EVERY)

    async def _race(self, race: Race) -> None:
        """Look as often as can be until the new price is there."""
        say(Seen(self._panel, os.getpid(), race=race.number))
        seen = await self._look()
        while seen.amount != race.amount:
            await asyncio.sleep(RACE_EVERY)
            seen = await self._look()
        say(msgspec.structs.replace(seen, race=race.number, at=time.time()))

    async def _look(self) -> Seen:
        from app.shop import product
        from cacheworkers import CacheworkersError

        try:
            read = await product.aread(HOT)
        except CacheworkersError as error:
            return Seen(self._panel, os.getpid(), error=str(error))
        view = read.value
        if view is None:
            return Seen(self._panel, os.getpid(), error=f"there is no product {HOT}")
        return Seen(self._panel, os.getpid(), view.name, view.amount, read.tier, read.freshness.value)


def main() -> None:
    """Fork the panels, once what they share is loaded, and pass orders on until there are no more."""
    import app.shop  # noqa: F401  # before the fork: six processes share its memory

    pipes: list[int] = []
    for panel in range(PANELS):
        ours, theirs = os.pipe()[::-1]
        if os.fork() == 0:
            for pipe in (ours, *pipes):
                os.close(pipe)  # else nobody's orders would ever end
            with open(theirs, "rb", buffering=0) as orders:
                asyncio.run(Panel(panel).show(orders))
            os._exit(0)
        os.close(theirs)
        pipes.append(ours)
    while line := sys.stdin.buffer.readline():
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, line)


if __name__ == "__main__":
    main()
