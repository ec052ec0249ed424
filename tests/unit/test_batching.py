"""Batching: what one turn of a loop asks for is fetched together, and nobody pays for a neighbour."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers.local.get_batcher import GetBatcher


class Source:
    """Answers each key with itself; remembers what was asked, and waits at the gate if there is one."""

    def __init__(self) -> None:
        self.fetches: list[list[str]] = []
        self.coherence: asyncio.Event | None = None
        self.error: BaseException | None = None

    async def __call__(self, keys: list[str]) -> list[bytes | None]:
        self.fetches.append(keys)
        error = self.error
        if self.coherence is not None:
            await self.coherence.wait()
        if error is not None:
            raise error
        return [None if key.startswith("none") else key.encode() for key in keys]

    def submit(self, keys: list[str], done: Callable[[Any], None]) -> bool:
        """The same, reported by a callback, as a connection that is open does."""

        def reported(task: asyncio.Task[list[bytes | None]]) -> None:
            error = task.exception()
            assert error is None or isinstance(error, Exception)
            done(error or task.result())

        asyncio.get_running_loop().create_task(self(keys)).add_done_callback(reported)
        return True


@pytest.fixture(params=["fetched", "submitted"])
def way(request: pytest.FixtureRequest) -> str:
    """How a batch reaches its source."""
    return str(request.param)


def made(source: Source, way: str, **options: Any) -> GetBatcher:
    return GetBatcher(source, source.submit, **options) if way == "submitted" else GetBatcher(source, **options)


async def got(batcher: GetBatcher, key: str) -> bytes | None:
    """One reader."""
    return await batcher.get(key)


def test_reads_of_one_turn_are_one_fetch(way: str) -> None:
    """Each reader gets the value of its own key."""
    source = Source()
    batcher = made(source, way)

    async def main() -> list[bytes | None]:
        return await asyncio.gather(*(batcher.get(key) for key in ("a", "b", "none", "c")))

    assert asyncio.run(main()) == [b"a", b"b", None, b"c"]
    assert source.fetches == [["a", "b", "none", "c"]]


def test_a_key_asked_for_twice_is_fetched_once(way: str) -> None:
    """Ten thousand readers of a hot key cost the store one read."""
    source = Source()
    batcher = made(source, way)

    async def main() -> list[bytes | None]:
        return await asyncio.gather(*(batcher.get(key) for key in ("a", "b", "a", "a")))

    assert asyncio.run(main()) == [b"a", b"b", b"a", b"a"]
    assert source.fetches == [["a", "b"]]


def test_a_read_that_is_alone_is_sent_in_the_next_turn() -> None:
    """Nothing is waited for but the end of this turn."""
    source = Source()
    sent: list[list[str]] = []

    def submit(keys: list[str], done: Callable[[Any], None]) -> bool:
        sent.append(keys)
        return source.submit(keys, done)

    batcher = GetBatcher(source, submit)

    async def main() -> list[int]:
        reading = batcher.get("a")
        seen = [len(sent)]
        await asyncio.sleep(0)
        seen.append(len(sent))
        await reading
        return seen

    assert asyncio.run(main()) == [0, 1]


def test_after_a_read_that_was_alone_the_next_does_not_wait_and_its_company_goes_together() -> None:
    """One of a turn does not wait for others; once there were others, it does again."""
    source = Source()
    batcher = made(source, "submitted")

    async def main() -> None:
        await batcher.get("a")
        await asyncio.gather(*(batcher.get(key) for key in "bcd"))  # nobody knew of c and d yet
        await asyncio.gather(*(batcher.get(key) for key in "efg"))

    asyncio.run(main())

    assert source.fetches == [["a"], ["b"], ["c", "d"], ["e", "f", "g"]]


def test_nothing_joins_what_was_sent_in_the_same_turn() -> None:
    source = Source()
    batcher = made(source, "submitted")

    async def main() -> None:
        await batcher.get("a")
        first, second = batcher.get("b"), batcher.get("b")
        assert await first == await second == b"b"

    asyncio.run(main())

    assert source.fetches == [["a"], ["b"], ["b"]]


def test_a_submission_that_raises_fails_its_readers() -> None:
    def submit(keys: list[str], done: Callable[[Any], None]) -> bool:
        raise OSError("closed")

    async def main() -> None:
        await GetBatcher(Source(), submit).get("a")

    with pytest.raises(OSError, match="closed"):
        asyncio.run(main())


def test_fetches_have_at_most_limit_keys(way: str) -> None:
    """A large turn is cut, and its parts are under way at the same time."""
    source = Source()
    batcher = made(source, way, limit=3)

    async def main() -> list[bytes | None]:
        source.coherence = asyncio.Event()
        reads = asyncio.gather(*(batcher.get(str(n)) for n in range(7)))
        while len(source.fetches) < 3:
            await asyncio.sleep(0)
        source.coherence.set()
        return await reads

    assert asyncio.run(main()) == [str(n).encode() for n in range(7)]
    assert sorted(source.fetches) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_a_read_joins_only_a_fetch_that_has_not_been_sent(way: str) -> None:
    """Joined to a fetch under way it could get a value that was invalidated before it began."""
    source = Source()
    batcher = made(source, way)

    async def main() -> None:
        source.coherence = asyncio.Event()
        early = asyncio.ensure_future(batcher.get("a"))
        while not source.fetches:
            await asyncio.sleep(0)
        late = asyncio.ensure_future(batcher.get("a"))
        while len(source.fetches) < 2:
            await asyncio.sleep(0)
        source.coherence.set()
        await asyncio.gather(early, late)

    asyncio.run(main())

    assert source.fetches == [["a"], ["a"]]


@pytest.mark.parametrize("is_sent", [False, True])
def test_cancelled_reader_does_not_harm_the_others(is_sent: bool) -> None:
    """Even the first one, who began the turn, and even one who shares the key."""
    source = Source()
    batcher = made(source, way)

    async def main() -> list[Any]:
        source.coherence = asyncio.Event()
        reads = [asyncio.ensure_future(batcher.get(key)) for key in ("a", "a", "b")]
        await asyncio.sleep(0)
        while is_sent and not source.fetches:
            await asyncio.sleep(0)
        reads[0].cancel()
        source.coherence.set()
        return await asyncio.gather(*reads, return_exceptions=True)

    first, second, third = asyncio.run(main())

    assert isinstance(first, asyncio.CancelledError)
    assert (second, third) == (b"a", b"b")


def test_failed_fetch_fails_only_its_own_readers() -> None:
    """The next turn is a new fetch, and other parts of the same turn stand for themselves."""
    source = Source()

    async def fetch(keys: list[str]) -> list[bytes | None]:
        if "bad" in keys:
            raise OSError("no answer")
        return await source(keys)

    batcher = GetBatcher(fetch, limit=2)

    async def main() -> tuple[list[Any], bytes | None]:
        reads = await asyncio.gather(*map(batcher.get, ("a", "b", "bad", "c")), return_exceptions=True)
        return reads, await batcher.get("c")

    (a, b, bad, c), later = asyncio.run(main())

    assert (a, b, later) == (b"a", b"b", b"c")
    assert isinstance(bad, OSError)
    assert isinstance(c, OSError)


def test_fetch_that_answers_too_few_values_fails_all_its_readers() -> None:
    """Nobody is left waiting, and nobody gets a value that may be another key's."""

    async def fetch(keys: list[str]) -> list[bytes | None]:
        return [b"one"]

    async def main() -> list[Any]:
        batcher = GetBatcher(fetch)
        return await asyncio.gather(batcher.get("a"), batcher.get("b"), return_exceptions=True)

    found = asyncio.run(main())

    assert [type(error) for error in found] == [RuntimeError, RuntimeError]
    assert "got 1 for 2 keys" in str(found[0])


def test_fetch_that_raises_before_it_awaits_fails_its_readers() -> None:
    """A plain function that raises is a failed fetch too."""

    def fetch(keys: list[str]) -> Any:
        raise OSError("closed")

    async def main() -> None:
        await GetBatcher(fetch).get("a")

    with pytest.raises(OSError, match="closed"):
        asyncio.run(main())


def test_cancelled_fetch_leaves_nobody_waiting() -> None:
    """A loop that shuts down cancels the fetch; its readers end with it."""
    source = Source()
    batcher = GetBatcher(source)

    async def main() -> list[Any]:
        source.coherence = asyncio.Event()
        reads = [asyncio.ensure_future(batcher.get(key)) for key in ("a", "b")]
        while not source.fetches:
            await asyncio.sleep(0)
        for task in list(batcher._tasks):
            task.cancel()
        return await asyncio.gather(*reads, return_exceptions=True)

    found = asyncio.run(main())

    assert [type(error) for error in found] == [asyncio.CancelledError] * 2


def test_loops_do_not_share_fetches(way: str) -> None:
    """A connection belongs to one loop: so does what is read through it."""
    source = Source()
    batcher = made(source, way)
    other = asyncio.new_event_loop()

    async def main() -> bytes | None:
        mine = asyncio.ensure_future(batcher.get("a"))
        await asyncio.sleep(0)  # asked, and not yet sent
        theirs = await asyncio.to_thread(other.run_until_complete, got(batcher, "b"))
        assert theirs == b"b"
        return await mine

    found = asyncio.run(main())
    other.close()

    assert found == b"a"
    assert sorted(source.fetches) == [["a"], ["b"]]


def test_nothing_is_kept_of_a_loop_that_has_ended() -> None:
    """Programs that run many loops in turn do not grow."""
    batcher = GetBatcher(Source())
    loop = asyncio.new_event_loop()
    loop.run_until_complete(got(batcher, "a"))
    gone = weakref.ref(loop)

    loop.close()
    del loop
    gc.collect()

    assert gone() is None
    assert not batcher._tasks


def test_loop_closed_in_mid_turn_is_forgotten_by_the_next(way: str) -> None:
    """What it asked for is nobody's any more."""
    source = Source()
    batcher = made(source, way)
    loop = asyncio.new_event_loop()

    def ask_and_go() -> None:
        batcher.get("a")
        loop.stop()

    loop.call_soon(ask_and_go)
    loop.run_forever()
    loop.close()
    found = asyncio.run(got(batcher, "b"))

    assert found == b"b"
    assert source.fetches[-1] == ["b"]
    assert not batcher._turns


def test_fetch_of_a_loop_closed_in_mid_fetch_is_forgotten_by_the_next_turn() -> None:
    """Nobody cancels what runs on a loop that is closed without `asyncio.run`."""
    source = Source()
    batcher = GetBatcher(source)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        source.coherence = asyncio.Event()
        batcher.get("a")
        while not source.fetches:
            await asyncio.sleep(0)

    loop.run_until_complete(begin())
    [left] = batcher._tasks
    loop.close()
    source.coherence = None
    found = asyncio.run(got(batcher, "b"))
    left._log_destroy_pending = False  # type: ignore[attr-defined]  # what this test leaves behind on purpose

    assert found == b"b"
    assert not batcher._tasks


def test_child_of_a_fork_starts_its_own_turn(way: str) -> None:
    """What the parent's loop had asked for is not waited for by the child's reads."""
    source = Source()
    batcher = made(source, way)

    async def main() -> bytes | None:
        orphan = asyncio.ensure_future(batcher.get("a"))
        await asyncio.sleep(0)
        batcher.reset()
        found = await asyncio.wait_for(batcher.get("b"), 10)
        orphan.cancel()
        return found

    assert asyncio.run(main()) == b"b"
    assert source.fetches[-1] == ["b"]
