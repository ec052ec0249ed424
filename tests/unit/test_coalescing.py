"""Readers of one call that share one reader's outcome: who gets it, and who leads next."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from cacheworkers.core.entry import Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.local.coalescing import Crowd, Crowds, ThreadPlace, leave
from cacheworkers.testing.servers import wait_until

READ = Read(1, Freshness.FRESH, "store", 0.0, 0)


def outcome_of(place: Any) -> Any:
    return place.result() if place.done() else None


def test_a_follower_gets_only_what_was_looked_up_after_it_joined() -> None:
    """One that joins while the reply is under way leads next."""

    async def play() -> None:
        crowds = Crowds()
        crowd, place = crowds.enter("price", 0.0, asyncio.get_running_loop())
        assert place is None
        _, early = crowds.enter("price", 1.0, asyncio.get_running_loop())
        crowd.cover()
        _, late = crowds.enter("price", 2.0, asyncio.get_running_loop())
        _, later = crowds.enter("price", 3.0, asyncio.get_running_loop())
        crowd.payload = b"1"

        crowd.succeed(READ)

        assert outcome_of(early).read is READ
        assert outcome_of(late) is crowd and outcome_of(later) is None
        crowd.cover()
        crowd.payload = b"1"
        crowd.succeed(READ)
        assert outcome_of(later).read is READ
        assert crowds.enter("price", 4.0, asyncio.get_running_loop())[1] is None  # that crowd is over

    asyncio.run(play())


def test_a_look_that_waits_to_be_sent_covers_who_joins_meanwhile() -> None:
    async def play() -> None:
        loop, crowds, turn = asyncio.get_running_loop(), Crowds(), object()
        crowd, _ = crowds.enter("price", 0.0, loop)
        crowd.cover()
        crowd.unsent = turn
        _, early = crowds.enter("price", 1.0, loop)
        assert crowd.unsent is turn
        crowd.cover_all()
        _, late = crowds.enter("price", 2.0, loop)
        crowd.payload = b"1"

        assert crowd.succeed(READ) == 1

        assert outcome_of(early).read is READ
        assert outcome_of(late) is crowd
        crowd.disband()
        assert crowds.enter("price", 3.0, loop)[1] is None

    asyncio.run(play())


def test_what_is_for_the_leader_alone_goes_to_nobody_else() -> None:
    async def play() -> None:
        crowds = Crowds()
        crowd, _ = crowds.enter("price", 0.0, asyncio.get_running_loop())
        _, follower = crowds.enter("price", 0.0, asyncio.get_running_loop())
        crowd.cover()

        crowd.succeed(READ)

        assert outcome_of(follower) is crowd

    asyncio.run(play())


def test_an_error_is_for_those_that_began_before_its_instant() -> None:
    async def play() -> None:
        crowds = Crowds()
        crowd, _ = crowds.enter("price", 0.0, asyncio.get_running_loop())
        places: list[Any] = [
            crowds.enter("price", started, asyncio.get_running_loop())[1] for started in (1.0, 2.0, 3.0)
        ]
        crowd.cover()
        crowd.began_before = 2.0
        error = ValueError("over")

        crowd.fail(error)

        assert [getattr(outcome_of(place), "error", None) for place in places] == [error, error, None]
        assert outcome_of(places[2]) is crowd

    asyncio.run(play())


def test_a_cancelled_follower_is_passed_over_and_hands_its_turn_on() -> None:
    """Also one that is cancelled between being given the lead and waking up."""

    async def play() -> None:
        crowds = Crowds()
        crowd, _ = crowds.enter("price", 0.0, asyncio.get_running_loop())
        places: list[Any] = [crowds.enter("price", 0.0, asyncio.get_running_loop())[1] for _ in range(3)]

        async def follow(place: Any) -> Any:
            try:
                return await place
            except BaseException:
                leave(place)
                raise

        tasks = [asyncio.create_task(follow(place)) for place in places]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)

        crowd.pass_on()
        tasks[1].cancel()

        assert await tasks[2] is crowd
        assert tasks[0].cancelled() and tasks[1].cancelled()
        crowd.pass_on()
        assert crowds.enter("price", 0.0, asyncio.get_running_loop())[1] is None

    asyncio.run(play())


def test_threads_wait_for_a_thread() -> None:
    crowds = Crowds()
    crowd, _ = crowds.enter("price", 0.0, None)
    found: list[Any] = []

    def follow() -> None:
        _, place = crowds.enter("price", 0.0, None)
        assert isinstance(place, ThreadPlace)
        found.append(place.outcome(60.0))

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(crowds) == 3)
    crowd.cover()
    crowd.payload = b"1"

    crowd.succeed(READ)

    for thread in threads:
        thread.join(60)
    assert [each.read for each in found] == [READ] * 3


def test_a_thread_that_has_stopped_waiting_is_given_nothing() -> None:
    crowds = Crowds()
    crowd, _ = crowds.enter("price", 0.0, None)
    _, place = crowds.enter("price", 0.0, None)
    assert isinstance(place, ThreadPlace)

    assert place.outcome(0.0) is None

    crowd.pass_on()
    assert crowds.enter("price", 0.0, None)[1] is None


def test_nobody_finds_the_crowd_of_a_closed_loop() -> None:
    crowds, index, loops = Crowds(), dict[Any, Crowd](), [asyncio.new_event_loop() for _ in range(2)]
    crowd, _ = crowds.enter("key", 0.0, loops[0])
    crowds.enter("key", 0.0, loops[0])
    crowd.loop, crowd.index, crowd.arguments = loops[0], index, (1,)
    index[(1,)] = crowd
    loops[0].close()

    crowds.enter("key", 0.0, loops[1])

    assert index == {} and not crowd.join(object(), 0.0)
    loops[1].close()


def test_a_crowd_that_ends_leaves_what_its_arguments_lead_to_by_then() -> None:
    """The crowd of another loop, which reads the same."""
    crowds, loop = Crowds(), asyncio.new_event_loop()
    crowd, _ = crowds.enter("key", 0.0, loop)
    other = Crowd({}, "key", crowds.lock)
    crowd.index, crowd.arguments = {(1,): other}, (1,)

    crowd.disband()

    assert crowd.index == {(1,): other}
    loop.close()
