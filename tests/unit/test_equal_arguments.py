"""Arguments that Python holds equal: the way through memory and the way through the store take the same."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import uuid
from typing import Any, Literal

import msgspec
import pytest

from cacheworkers import BadArgument
from cacheworkers.core.signature import Signature


class Text(str):
    """A subclass, as a framework may pass."""


class Id(uuid.UUID):
    """A subclass, as asyncpg returns."""


class Day(datetime.date):
    """A subclass."""


class Colour(enum.StrEnum):
    RED = "red"


class Rank(enum.IntEnum):
    ONE = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Search:
    words: str
    page: int = 1
    sizes: tuple[str, ...] = ()


KEYABLE: dict[Any, Any] = {
    int: 1,
    bool: True,
    str: "red",
    uuid.UUID: uuid.UUID(int=5),
    datetime.date: datetime.date(2026, 1, 2),
    Colour: Colour.RED,
    Rank: Rank.ONE,
    Literal[1, 2]: 1,
    Literal["red"]: "red",
    int | None: 1,
}
OTHERS = [1, True, 1.0, decimal.Decimal(1), fractions.Fraction(1), "red", Text("red"), Colour.RED, Rank.ONE]
OTHERS += [uuid.UUID(int=5), Id(int=5), datetime.date(2026, 1, 2), Day(2026, 1, 2), 1 + 0j]


def signature(annotation: Any) -> Signature:
    def one(load, value): ...  # type: ignore[no-untyped-def]

    one.__annotations__["value"] = annotation
    return Signature("one", one)


@pytest.mark.parametrize("other", OTHERS, ids=repr)
@pytest.mark.parametrize("annotation", KEYABLE, ids=str)
def test_what_is_equal_to_an_argument_is_that_argument(annotation: Any, other: Any) -> None:
    """Memory finds it by the raw argument, so the store has to find the same call."""
    made, value = signature(annotation), KEYABLE[annotation]
    assert made.positional_keys
    if other != value or hash(other) != hash(value):
        return

    call = made.bind((other,), {})

    assert call == made.bind((value,), {})
    assert type(call.arguments[0]) is type(made.bind((value,), {}).arguments[0])
    assert made.texts([value, other]) == {value: call.text}


def test_equal_keys_that_are_two_calls_are_refused() -> None:
    """A dict has room for one of them only."""
    with pytest.raises(BadArgument, match="two calls with equal keys"):
        signature(Any).texts([1, True])
    with pytest.raises(BadArgument, match="hashable"):
        signature(list[int]).texts([[1]])
    assert signature(float).texts([1, 1.0]) == {1: "one[1.0]"}


@pytest.mark.parametrize(
    "made",
    [
        Search("oak"),
        {"words": "oak"},
        msgspec.convert({"words": "oak"}, Search),
        msgspec.json.decode(b'{"words":"oak"}', type=Search),
    ],
    ids=["called", "as a dict", "converted", "decoded"],
)
def test_a_dataclass_is_one_call_whatever_has_made_it(made: Any) -> None:
    """What msgspec makes, of a request's body in Litestar say, leaves its defaults to the class."""

    def one(load: object, search: Search) -> None: ...

    def several(load: object, searches: list[Search]) -> None: ...

    search, searches = Signature("one", one), Signature("several", several)

    assert search.bind((made,), {}).text == search.bind((Search("oak"),), {}).text
    assert searches.bind(([made],), {}).text == searches.bind(([Search("oak")],), {}).text


@pytest.mark.parametrize("right", [Right.READ, Right.READ | Right.WRITE, Right(0)])
def test_a_flag_is_an_argument_like_its_value(right: Right) -> None:
    def menu(load: object, right: Right) -> None: ...

    signature = Signature("menu", menu)

    call = signature.bind((right,), {})

    assert (call.text, call.arguments) == (f"menu[{right.value}]", (right,))
    assert signature.parse(call.text) == call
