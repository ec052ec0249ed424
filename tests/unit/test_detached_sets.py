"""What the store replies about detached sets."""

from __future__ import annotations

from redis.exceptions import ResponseError

from cacheworkers.store.commands.replies import DetachedSet, ForeignType, detached


def test_the_set_just_detached_has_members_and_older_ones_none() -> None:
    reply = [[b"d:1", b"left"], [b"price[1]", b"price[2]"]]

    assert detached("all", 3, reply, name="d:1") == [
        DetachedSet("all", 3, "d:1", ["price[1]", "price[2]"]),
        DetachedSet("all", 3, "left"),
    ]


def test_a_key_of_another_type_is_reported_and_raises_nothing_yet() -> None:
    """The other tags of the exchange are drained first."""
    [found] = detached("all", 0, ResponseError("WRONGTYPE"), "t", "v", name="d:1")

    assert isinstance(found, ForeignType) and str(found).startswith("one of the keys t, v holds what something else")
