"""Doomed sets, as the store tells of them."""

from __future__ import annotations

from redis.exceptions import ResponseError

from cacheworkers.store.commands.replies import Doomed, just_detached


def test_what_was_just_put_aside_comes_with_members_and_what_others_left_without() -> None:
    replies = [[b"d:1", b"left"], [b"price[1]", b"price[2]"]]

    assert just_detached(replies, ["d:1"]) == [Doomed(0, "d:1", ["price[1]", "price[2]"]), Doomed(0, "left", [])]


def test_a_set_of_another_type_keeps_no_other_shard_from_being_drained() -> None:
    """Its members are asked for again when it is drained, and that is told."""
    replies = [[b"d:0"], ResponseError("WRONGTYPE"), [b"d:1"], [b"price[1]"]]

    assert just_detached(replies, ["d:0", "d:1"]) == [Doomed(0, "d:0", []), Doomed(1, "d:1", ["price[1]"])]
