"""Scenes of memory against pushes: who does what, one after another, while the others do what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stepped import How, Processes, Reading, Step, every_order, random_orders

from cacheworkers.testing import Stepper

Actors = list[list[Step]]
Scene = Callable[[Processes, int, How], Actors]


def play(p: Processes, scene: Scene, how: How = "sync") -> int:
    """Go through every order of a scene; return how many there are."""
    *_, orders = every_order(lambda: _begun(p, scene, how))
    return orders


def play_some(p: Processes, scene: Scene, most: int, seed: int) -> None:
    """Go through some orders of a scene that has too many of them."""
    random_orders(lambda: _begun(p, scene, "sync"), most, seed)


def _begun(p: Processes, scene: Scene, how: How) -> tuple[Actors, Callable[[], None]]:
    number = p.begin()

    def end() -> None:
        p.deliver_all()
        p.end(number)

    return scene(p, number, how), end


# -- actors; memory is looked into after each of their steps


def a_read(p: Processes, number: int, how: How, name: str = "price") -> list[Step]:
    """Its guard is taken, the entry is fetched, and kept; a stale one is fetched twice."""
    reading: list[Reading] = []

    def begin() -> None:
        reading.append(p.reading(name, number, how))
        if reading[0].at:
            reading[0].step()

    go_on = Step(_checked(p, lambda: reading[0].step()), lambda: bool(reading[0].at))
    return [Step(_checked(p, begin)), *[go_on] * 5]


def _a_read_under_way(p: Processes, number: int, how: How, name: str = "price") -> list[Step]:
    """Its guard has been taken."""
    reading = p.reading(name, number, how)
    reading.step()
    return [Step(_checked(p, reading.step), lambda: bool(reading.at))] * 3


def a_change(p: Processes, number: int, mode: Any = "hard", by: str = "others") -> list[Step]:
    """It is committed and numbered, its entries are deleted or made stale, and it is acknowledged.

    That its leases are deleted before, no memory is notified of.
    """
    flow: list[Stepper[Any]] = []

    def commit() -> None:
        p.commit(number)
        flow.append(p.invalidation(number, mode, by=by))
        p.go_on(flow[0], until="unlink" if mode == "hard" else "soften")
        if mode == "hard":
            p.go_on(flow[0])

    def acknowledge() -> None:
        p.finish(flow[0])
        p.acknowledged(number, p.versions[number], is_soft=mode == "soft", is_own=by == "ports")

    return _steps(p, commit, lambda: p.go_on(flow[0]), acknowledge)


def pushes(p: Processes, most: int = 5) -> list[Step]:
    """The listener: one reply after another is processed, as they come."""
    return [Step(_checked(p, p.deliver), lambda: p.has_replies)] * most


def immediately(p: Processes, steps: Sequence[Step]) -> list[Step]:
    """Nothing comes between these."""
    return _steps(p, lambda: [step.run() for step in steps] and None)


def _steps(p: Processes, *runs: Callable[[], None]) -> list[Step]:
    return [Step(_checked(p, run)) for run in runs]


def _checked(p: Processes, run: Callable[[], None]) -> Callable[[], None]:
    def checked() -> None:
        run()
        p.check()

    return checked


def _a_dying_link(p: Processes) -> list[Step]:
    return _steps(p, p.break_link, p.notice, p.reconnect)


# -- scenes; the entry is in the store, at version 1


def a_change_and_a_read(p: Processes, number: int, how: How) -> Actors:
    return [a_read(p, number, how), a_change(p, number), pushes(p)]


def a_change_of_what_is_kept(p: Processes, number: int, how: How) -> Actors:
    p.read("price", number)
    return [a_read(p, number, how), a_change(p, number), pushes(p)]


def a_change_of_a_stale_entry(p: Processes, number: int, how: How) -> Actors:
    for step in a_change(p, number, "soft"):
        step.run()
    p.deliver_all()
    return [a_read(p, number, how), a_change(p, number), pushes(p)]


def a_change_of_one_call(p: Processes, number: int, how: How) -> Actors:
    def change() -> None:
        p.commit(number)
        p.finish(p.invalidation_of_call("price", number))
        p.acknowledged(number, p.versions[number], of="price")

    return [a_read(p, number, how), _steps(p, change, change), pushes(p)]


def a_soft_change(p: Processes, number: int, how: How) -> Actors:
    return [a_read(p, number, how), a_change(p, number, "soft"), pushes(p)]


def a_soft_change_of_what_is_kept(p: Processes, number: int, how: How) -> Actors:
    p.read("price", number)
    return [a_read(p, number, how), a_change(p, number, "soft"), pushes(p)]


def a_soft_change_that_is_loaded(p: Processes, number: int, how: How) -> Actors:
    """Made stale, then written."""
    loaded = _steps(p, lambda: p.load("price", number))
    return [a_read(p, number, how), immediately(p, a_change(p, number, "soft")) + loaded, pushes(p)]


def a_change_that_is_loaded(p: Processes, number: int, how: How) -> Actors:
    """Deleted, then written."""
    loaded = _steps(p, lambda: p.load("price", number))
    return [a_read(p, number, how), immediately(p, a_change(p, number)) + loaded, pushes(p)]


def a_change_of_what_the_store_has_lost(p: Processes, number: int, how: How) -> Actors:
    """Evicted there, which is pushed; and loaded again."""
    lost = _steps(p, lambda: p.lose("price", number), lambda: p.load("price", number))
    return [a_read(p, number, how), immediately(p, a_change(p, number)), lost, pushes(p)]


def a_change_of_what_is_evicted(p: Processes, number: int, how: How) -> Actors:
    p.read("price", number)
    return [a_read(p, number, how), immediately(p, a_change(p, number)), _steps(p, p.evict), pushes(p)]


def a_change_of_two_loaders(p: Processes, number: int, how: How) -> Actors:
    """One tag, two entries; both reads have taken their guard."""
    reads = [_a_read_under_way(p, number, how, name) for name in p.loaders]
    return [*reads, immediately(p, a_change(p, number)), pushes(p)]


def a_change_made_here(p: Processes, number: int, how: How) -> Actors:
    """Acknowledged, it is gone from this process's own memory, pushes or no pushes."""
    p.read("price", number)
    return [a_read(p, number, how), a_change(p, number, by="ports"), pushes(p)]


def a_change_made_here_of_what_is_being_read(p: Processes, number: int, how: How) -> Actors:
    """Read before it and kept after it: nothing would report it, for it is not tracked yet."""
    return [a_read(p, number, how), a_change(p, number, by="ports"), pushes(p)]


def a_change_made_here_while_the_link_dies(p: Processes, number: int, how: How) -> Actors:
    p.read("price", number)
    change = immediately(p, a_change(p, number, by="ports"))
    return [a_read(p, number, how), change, _a_dying_link(p), pushes(p)]


def a_change_while_the_link_dies(p: Processes, number: int, how: How) -> Actors:
    return [a_read(p, number, how), immediately(p, a_change(p, number)), _a_dying_link(p), pushes(p)]


def a_change_of_what_is_kept_while_the_link_dies(p: Processes, number: int, how: How) -> Actors:
    p.read("price", number)
    return [a_change(p, number), _a_dying_link(p), pushes(p)]


def a_change_that_a_dead_link_never_reports(p: Processes, number: int, how: How) -> Actors:
    p.read("price", number)
    return [a_read(p, number, how), a_change(p, number), _steps(p, p.break_link, p.pass_time), pushes(p)]


def a_change_while_a_ping_is_answered_late(p: Processes, number: int, how: How) -> Actors:
    """The answer is from before the link died: it proves nothing of what came after it was asked for."""
    p.read("price", number)
    return [immediately(p, a_change(p, number)), _steps(p, p.ping, p.break_link, p.pass_time), pushes(p)]


def a_change_before_a_ping(p: Processes, number: int, how: How) -> Actors:
    """Its answer comes after the change's push."""
    return [a_read(p, number, how), immediately(p, a_change(p, number)), _steps(p, p.pass_time, p.ping), pushes(p)]


def two_reads_and_two_changes(p: Processes, number: int, how: How) -> Actors:
    changes = immediately(p, a_change(p, number)) + _steps(p, lambda: p.load("price", number))
    reads = [_a_read_under_way(p, number, how), a_read(p, number, how)]
    return [*reads, changes + immediately(p, a_change(p, number)), pushes(p)]


SCENES: list[Scene] = [
    a_change_and_a_read,
    a_change_of_what_is_kept,
    a_change_of_a_stale_entry,
    a_change_of_one_call,
    a_soft_change,
    a_soft_change_of_what_is_kept,
    a_soft_change_that_is_loaded,
    a_change_that_is_loaded,
    a_change_of_what_the_store_has_lost,
    a_change_of_what_is_evicted,
    a_change_of_two_loaders,
    a_change_made_here,
    a_change_made_here_of_what_is_being_read,
    a_change_made_here_while_the_link_dies,
    a_change_while_the_link_dies,
    a_change_of_what_is_kept_while_the_link_dies,
    a_change_that_a_dead_link_never_reports,
    a_change_while_a_ping_is_answered_late,
    a_change_before_a_ping,
]
