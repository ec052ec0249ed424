"""InlineBulkhead: runs loads where they are asked for, in the caller's thread or on its loop: for tests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cacheworkers.errors import BulkheadFull
from cacheworkers.local.bulkhead import Bulkhead

T = TypeVar("T")


class InlineBulkhead(Bulkhead):
    """A bulkhead without room or threads; only a coroutine that a thread without a loop asks for has the library's."""

    def run(self, work: Callable[[], T], timeout: float) -> T:
        """Return what `work` returns, run in this thread."""
        return work()

    async def arun(self, work: Callable[[], T], timeout: float) -> T:
        """Return what `work` returns, run in this thread; with Django where its tests have their connection."""
        if "django.db" in sys.modules:  # whose ORM refuses to work in a thread that runs a loop
            from asgiref.sync import sync_to_async

            made: T = await sync_to_async(work)()
            return made
        return work()

    async def arun_async(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Return what a coroutine returns, run on the running loop.

        Raises:
            BulkheadFull: no result within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                return await work()
        except TimeoutError:
            if not limit.expired():
                raise
            raise BulkheadFull(f"a load in this process took longer than {timeout:.3g} s") from None
