"""LoaderRunner: runs loaders' own code, in a worker's thread or in a reader's process, with the sessions it needs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any

from cacheworkers import load_context as loads
from cacheworkers.core.annotations import shown
from cacheworkers.core.canonical_arguments import EXACT
from cacheworkers.core.driver import Step
from cacheworkers.errors import CallError, KeyMissing, LoadTimeout
from cacheworkers.flows.load_failure import text_of_error
from cacheworkers.flows.ports import LoaderSpec, Loading
from cacheworkers.local.bulkhead import Bulkhead
from cacheworkers.local.coherence import Coherence
from cacheworkers.runtime.loader_sessions import CallersSessions
from cacheworkers.sql.watch.dirty_transactions import DirtyTransaction, LateInvalidation

if TYPE_CHECKING:
    from cacheworkers.sql.load_sessions import LoadSessions


#: What no loader raises by itself, and the packages whose own exceptions end a green thread.
_FROM_OUTSIDE = (asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit)
_GREEN = ("greenlet", "gevent", "eventlet")


class LoaderRunner:
    """Makes the steps that run loaders, each attempt in a session of its own."""

    def __init__(
        self,
        owner: object,
        where: str,
        sessions: LoadSessions | CallersSessions,
        bulkhead: Bulkhead,
        coherence: Coherence,
        arounds: Sequence[loads.AroundLoad] = (),
    ) -> None:
        """
        Args:
            owner: the cache; nested reads of its loaders belong to the load.
            where: "worker" runs in the calling thread, "reader" behind the bulkhead.
            arounds: what surrounds each run of a loader, the outermost first.
        """
        self.where = where
        self.owner = owner
        self.sessions = sessions
        self.bulkhead = bulkhead
        self.coherence = coherence
        self.arounds: Sequence[Callable[[loads.LoadCall], Any]] = arounds

    def step(self, loader: LoaderSpec, loading: Loading) -> Step:
        """Return the step that runs the loader once for all calls of `loading`."""
        return RunLoader(self, loader, loading)

    def step_in_transaction(
        self, dirty: DirtyTransaction | LateInvalidation, loader: LoaderSpec, loading: Loading, may_flush: bool
    ) -> Step:
        """Return the step that runs the loader on the session of a dirty transaction, which it may flush or not."""
        if isinstance(dirty, LateInvalidation):  # committed: any session sees it
            return RunLoader(self, loader, loading)
        return RunInTransaction(self, loader, loading, dirty, may_flush)


class RunLoader:
    """A step: call text -> the value, or the exception that its load raised."""

    __slots__ = ("_loader", "_loading", "_runner")

    def __init__(self, runner: LoaderRunner, loader: LoaderSpec, loading: Loading) -> None:
        self._runner = runner
        self._loader = loader
        self._loading = loading

    def __repr__(self) -> str:
        return f"load {self._loading.calls[0].text}"

    def run(self) -> dict[str, Any]:
        """Run it, blocking this thread."""
        bulkhead = self._runner.bulkhead
        if self._loader.is_async:
            return bulkhead.run_async(self._work_async, self._timeout())
        if self._runner.where == "worker":
            return self._work()
        return bulkhead.run(self._work, self._timeout())

    async def arun(self) -> dict[str, Any]:
        """Run it while the running loop goes on; never on that loop."""
        bulkhead = self._runner.bulkhead
        if self._loader.is_async:
            return await bulkhead.arun_async(self._work_async, self._timeout())
        return await bulkhead.arun(self._work, self._timeout())

    def _timeout(self) -> float:
        remaining = self._loading.deadline - time.monotonic()
        if remaining <= 0:
            raise LoadTimeout(f"no time left to load {self._loading.calls[0].text}")
        return remaining

    def _work(self) -> dict[str, Any]:
        timeout, sessions = self._timeout(), self._runner.sessions
        found = self._run_on(lambda: sessions.for_load(timeout))
        self._loading.reads_replica = sessions.reads_replica
        return found

    async def _work_async(self) -> dict[str, Any]:
        timeout, sessions = self._timeout(), self._runner.sessions
        found = await self._run_on_async(lambda: sessions.afor_load(timeout))
        self._loading.reads_replica = sessions.reads_replica
        return found

    def _run_on(self, session_of: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
        """Run the loader on a session, surrounded by what the cache was given for that."""
        try:
            with contextlib.ExitStack() as stack:
                for around in self._runner.arounds:
                    stack.enter_context(around(self._described()))
                stack.enter_context(self._inside())
                load = loads.Load(self._loader, self._loading, stack.enter_context(session_of()))
                return self._by_call(self._loader.function(load, *self._arguments()))
        except BaseException as error:
            return self._failed(_as_failure(error))
        return self._failed(RuntimeError("around_load swallowed the exception of a load"))

    async def _run_on_async(self, session_of: Callable[[], AbstractAsyncContextManager[Any]]) -> dict[str, Any]:
        """Run an `async def` loader; what surrounds it may be either kind of context manager."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                for around in self._runner.arounds:
                    surrounding = around(self._described())
                    if hasattr(surrounding, "__aenter__"):
                        await stack.enter_async_context(surrounding)
                    else:
                        stack.enter_context(surrounding)
                stack.enter_context(self._inside())
                load = loads.AsyncLoad(self._loader, self._loading, await stack.enter_async_context(session_of()))
                return self._by_call(await self._loader.function(load, *self._arguments()))
        except BaseException as error:
            return self._failed(_as_failure(error))
        return self._failed(RuntimeError("around_load swallowed the exception of a load"))

    def _described(self) -> loads.LoadCall:
        return loads.LoadCall(self._loader.name, tuple(call.text for call in self._loading.calls), self._runner.where)

    def _failed(self, error: Exception) -> dict[str, Any]:
        return {call.text: error for call in self._loading.calls}

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Mark this thread or task as inside the load, so that its reads of other loaders are nested reads."""
        token = loads.current.set((self._runner.owner, self._loading))
        self._runner.coherence.bypass()
        try:
            yield
        finally:
            self._runner.coherence.unbypass()
            loads.current.reset(token)

    def _arguments(self) -> tuple[Any, ...]:
        calls = self._loading.calls
        if not self._loader.is_batch:
            return calls[0].arguments
        self._loading.keys = keys = [call.arguments[0] for call in calls]
        return (keys,)

    def _by_call(self, returned: Any) -> dict[str, Any]:
        """Return what the loader returned, by call text."""
        loader, calls = self._loader, self._loading.calls
        if inspect.isawaitable(returned):
            raise TypeError(f"{loader.name} returned an awaitable; declare it with async def")
        if not loader.is_batch:
            return {calls[0].text: returned}
        if not isinstance(returned, dict):
            raise TypeError(f"{loader.name} must return a dict of key -> value, got {type(returned).__name__}")
        found = {call.text: returned[call.arguments[0]] for call in calls if call.arguments[0] in returned}
        if len(found) < len(calls):
            self._refuse_strange_keys(returned)
        for call in calls:
            if call.text not in found:
                left_out = f"the batch loader left out {call.arguments[0]!r}"
                is_none = loader.codec.admits_none
                found[call.text] = None if is_none else KeyMissing(loader.name, call.text, "KeyMissing", left_out)
        return found

    def _refuse_strange_keys(self, returned: dict[Any, Any]) -> None:
        """Raise TypeError if a key was not asked for and is of another type: "7" for 7 is no key that is not there."""
        [kind] = self._loader.signature.annotations.values()
        asked = {call.arguments[0] for call in self._loading.calls}
        for key in returned if kind in EXACT else ():
            if not isinstance(key, kind) and key not in asked:
                raise TypeError(f"{self._loader.name} must return keys that it is given, {shown(kind)}s, got {key!r}")


class RunInTransaction(RunLoader):
    """A step: the same, on the session of an open transaction, in the caller's own thread or task."""

    __slots__ = ("_dirty", "_may_flush")

    def __init__(
        self, runner: LoaderRunner, loader: LoaderSpec, loading: Loading, dirty: DirtyTransaction, may_flush: bool
    ) -> None:
        super().__init__(runner, loader, loading)
        self._dirty = dirty
        self._may_flush = may_flush

    def run(self) -> dict[str, Any]:
        """Run it, blocking this thread."""
        if self._loader.is_async:
            raise CallError(
                f"{self._loading.calls[0].text} cannot be read here: its loader is async, and this context has an open "
                f"transaction of a sync session that has changed what is watched; commit first"
            )
        with self._flushing():
            return self._run_on(lambda: contextlib.nullcontext(self._dirty.session))

    async def arun(self) -> dict[str, Any]:
        """Run it on the AsyncSession; on a sync session, as the caller's own queries do."""
        session = self._dirty.async_session
        if session is None:
            return self.run()
        with self._flushing():
            if not self._loader.is_async:
                found: dict[str, Any] = await session.run_sync(
                    lambda sync_session: self._run_on(lambda: contextlib.nullcontext(sync_session))
                )
                return found
            return await self._run_on_async(lambda: contextlib.nullcontext(session))

    def _flushing(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context within which the session flushes before queries as usual, or not at all."""
        return contextlib.nullcontext() if self._may_flush else self._dirty.no_autoflush()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Leave reads of other loaders as they are in the transaction."""
        yield


def _as_failure(error: BaseException) -> Exception:
    """Return what a loader has raised as its failure, also what would end whatever runs the loader.

    Raises:
        BaseException: it is not the loader's own: the running task or green thread is ended, and the loader with it; or
            Celery, or a signal, ends a process of its pool.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, asyncio.CancelledError) and not _is_cancelling():
        text = "a task or future that the loader waited for was cancelled"
    # billiard exits with the signal's number - 256.
    elif type(error) is SystemExit and not (isinstance(error.code, int) and error.code < -100):
        text = f"the loader called sys.exit({error.code!r})"
    elif isinstance(error, _FROM_OUTSIDE) or type(error).__module__.partition(".")[0] in _GREEN:
        raise error
    else:
        text = f"the loader raised {type(error).__name__}: {text_of_error(error)}"
    failure = RuntimeError(text)
    failure.__cause__ = error
    return failure


def _is_cancelling() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return False
    return task is not None and bool(task.cancelling())
