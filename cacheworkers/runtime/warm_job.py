"""Warm jobs: warm-ups that run beside their caller, and can be watched, awaited, stopped and resumed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from cacheworkers.core.driver import Flow, Pause, run
from cacheworkers.errors import ConfigError
from cacheworkers.flows.ports import LoaderSpec
from cacheworkers.flows.warm_up import WarmUp, warm_up
from cacheworkers.runtime.wiring import Runtime


class _Stopped(Exception):
    """Raised where a job reports its progress, to end it there."""


class WarmJob:
    """Calls that workers load one after another on the `warm` queue, no faster than is harmless.

    Returned by `Loader.warm`, already under way on a daemon thread.  `await` it on an event
    loop, `wait` for it elsewhere.  A process that ends takes it along; what was loaded stays, and the next job passes
    over it.
    """

    def __init__(self, begin: Callable[[Callable[[WarmUp], None]], Flow[WarmUp]], calls: int) -> None:
        """
        Args:
            begin: makes the flow that does it and reports its progress; called again by `resume`.
            calls: how many there are.
        """
        self._begin = begin
        self._state = WarmUp(calls)
        self._start()

    def __repr__(self) -> str:
        state = self._state
        return f"<WarmJob {state.done}/{state.calls} fresh, {state.failed} failed{', done' if self.is_done else ''}>"

    @property
    def progress(self) -> WarmUp:
        """How far it is now."""
        return msgspec.structs.replace(self._state, failures=list(self._state.failures))

    @property
    def rate(self) -> float:
        """Calls loaded a second, on average since it was begun or resumed."""
        seconds = (self._ended_at or time.monotonic()) - self._began_at
        return self._state.loaded / seconds if seconds > 0 else 0.0

    @property
    def concurrency(self) -> int:
        """How many calls may be under way now: more while the `warm` queue stays short, fewer when it does not."""
        return self._state.window

    @property
    def is_done(self) -> bool:
        """Whether it has ended: all is tried, enough is fresh, it was stopped, or it has failed."""
        return self._outcome.done()

    def wait(self, timeout: float | None = None) -> WarmUp:
        """Wait for the end, at most `timeout` seconds; return the progress.

        Raises:
            TimeoutError: it is still under way, and goes on.
            StoreUnavailable: the store went away; `resume` goes on.
        """
        return self._outcome.result(timeout)

    def __await__(self) -> Generator[Any, None, WarmUp]:
        """Wait for the end on the running loop; whoever is cancelled does not stop the job."""
        return asyncio.shield(asyncio.wrap_future(self._outcome)).__await__()

    def stop(self) -> None:
        """Ask for nothing more; what workers have been asked for, they load."""
        self._is_stopped = True

    def resume(self) -> None:
        """Go on after a stop or a failure: what is fresh is passed over.  Nothing happens while it is under way."""
        if self.is_done:
            self._start()

    def _start(self) -> None:
        self._is_stopped = False
        self._outcome: Future[WarmUp] = Future()
        self._began_at, self._ended_at = time.monotonic(), 0.0
        flow = self._begin(self._note)  # here, not on the thread: settings that break a rule are the caller's error
        threading.Thread(target=self._run, args=(flow, self._outcome), name="cacheworkers-warm", daemon=True).start()

    def _run(self, flow: Flow[WarmUp], outcome: Future[WarmUp]) -> None:
        try:
            self._state = run(flow)
        except _Stopped:
            pass
        except BaseException as error:
            self._ended_at = time.monotonic()
            outcome.set_exception(error)
            return
        self._ended_at = time.monotonic()
        outcome.set_result(self.progress)

    def _note(self, state: WarmUp) -> None:
        self._state = state
        if self._is_stopped:
            raise _Stopped


class Warmer:
    """Begins the warm jobs of one cache."""

    def __init__(self, runtime: Runtime) -> None:
        self._ports = runtime.ports
        self._runtime = runtime

    def job(
        self, loader: LoaderSpec, calls: Sequence[str], max_rate: float, concurrency: int | None, min_fresh: float
    ) -> WarmJob:
        """Return the job that loads calls, by their texts, and is under way.

        Raises:
            ConfigError: `max_rate`, `concurrency` or `min_fresh` is out of bounds.
        """
        return WarmJob(
            lambda progress: self.flow(loader, calls, max_rate, concurrency, min_fresh, progress), len(calls)
        )

    def flow(
        self,
        loader: LoaderSpec,
        calls: Sequence[str],
        max_rate: float,
        concurrency: int | None,
        min_fresh: float,
        progress: Callable[[WarmUp], None],
    ) -> Flow[WarmUp]:
        """Return the flow of such a job; it raises as `job` does."""
        config = self._ports.config
        concurrency = config.warm_concurrency if concurrency is None else concurrency
        if not max_rate > 0:
            raise ConfigError(f"max_rate must be more than 0 calls a second, got {max_rate!r}")
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1 call, got {concurrency!r}")
        if not 0 <= min_fresh <= 1:
            raise ConfigError(f"min_fresh must be a share from 0 to 1, got {min_fresh!r}")
        return warm_up(
            self._ports,
            loader,
            calls,
            lead=3 * config.warm_interval,
            max_rate=max_rate,
            concurrency=concurrency,
            min_fresh=min_fresh,
            pause=Pause,
            queued=self._runtime.queued,
            progress=progress,
        )
