"""The kinds of values: each with its own annotation, and whether readers get it back or the load is refused.

`docs/reference/values.md` is made of this list, and `test_value_kinds.py` proves it.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import typing
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pydantic

D = decimal.Decimal
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NOON = datetime.datetime(2026, 1, 31, 12)


class Kind(NamedTuple):
    """One kind: what it is, the annotation that fits it best, a value, and what becomes of it."""

    name: str
    annotation: Any
    make: Callable[[], Any]
    is_kept: bool
    is_kept_under_any: bool


class Text(str):
    """A text with a meaning of its own, as markupsafe.Markup is."""


class Number(int):
    """A number with a meaning of its own."""


class Colour(enum.Enum):
    RED = "red"


class Size(enum.StrEnum):
    LARGE = "large"


class Pair(NamedTuple):
    a: int
    b: str


class Doc(typing.TypedDict):
    id: int


class View(msgspec.Struct):
    id: int
    labels: set[str] = set()


class WiderView(View):
    extra: str = "x"


class Roomy(msgspec.Struct, dict=True):
    id: int


class Counted(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        self.n += 1


@dataclasses.dataclass
class Data:
    id: int

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.id


@dataclasses.dataclass
class WiderData(Data):
    extra: str = "x"


@dataclasses.dataclass
class LaterData:
    id: int
    made: int = dataclasses.field(init=False, default=0)


class Model(pydantic.BaseModel):
    id: int
    price: D | None = None
    made: list[int] = pydantic.Field(default_factory=lambda: [1])


class Tree(pydantic.BaseModel):
    root: Model
    more: dict[str, list[Model]] = {}


class WiderModel(Model):
    extra: str = "x"


class WithSecret(pydantic.BaseModel):
    token: pydantic.SecretStr


class WithExcluded(pydantic.BaseModel):
    margin: int = pydantic.Field(default=0, exclude=True)


class WithPrivate(pydantic.BaseModel):
    id: int
    _rank: int = pydantic.PrivateAttr(default=0)


class Validated(pydantic.BaseModel):
    price: int

    @pydantic.field_validator("price")
    @classmethod
    def dearer(cls, price: int) -> int:
        return price + 1


class Serialized(pydantic.BaseModel):
    price: D

    @pydantic.field_serializer("price")
    def rounded(self, price: D) -> str:
        return f"{price:.0f}"


class Open(pydantic.BaseModel, extra="allow"):
    id: int


class Ring(pydantic.BaseModel):
    recent: collections.deque[int]


class Labelled(pydantic.BaseModel):
    labels: set[str]


def used_data() -> Data:
    data = Data(2)
    assert data.double == 4
    return data


def more_than_data() -> Data:
    data = Data(1)
    data.note = "x"  # type: ignore[attr-defined]  # that is the case
    return data


def more_than_roomy() -> Roomy:
    roomy = Roomy(1)
    roomy.note = "x"  # type: ignore[attr-defined]  # that is the case
    return roomy


def later_data() -> LaterData:
    data = LaterData(1)
    data.made = 5
    return data


def ranked() -> WithPrivate:
    model = WithPrivate(id=1)
    model._rank = 7
    return model


KINDS = [
    Kind("None", None, lambda: None, True, True),
    Kind("bool, int, float, str", list[Any], lambda: [True, 7, 1.5, "é"], True, True),
    Kind("int where a float is declared, as that float", float, lambda: 5, True, True),
    Kind("float where an int is declared", int, lambda: 5.0, False, True),
    Kind("int beyond 64 bits", int, lambda: 2**70, True, True),
    Kind("NaN, infinity", float, lambda: float("nan"), False, False),
    Kind("subclass of str", str, lambda: Text("<b>"), False, False),
    Kind("subclass of int", int, lambda: Number(3), False, False),
    Kind("bytes", bytes, lambda: b"\x00\xff", True, False),
    Kind("bytes where a str is declared", str, lambda: b"abcd", False, False),
    Kind("Decimal", D, lambda: D("12.50"), True, False),
    Kind("Decimal NaN", D, lambda: D("sNaN"), False, False),
    Kind("UUID", uuid.UUID, lambda: uuid.UUID(int=7), True, False),
    Kind("date", datetime.date, lambda: NOON.date(), True, False),
    Kind("datetime without a zone", datetime.datetime, lambda: NOON, True, False),
    Kind(
        "datetime in UTC or at a fixed offset",
        datetime.datetime,
        lambda: NOON.replace(tzinfo=datetime.UTC),
        True,
        False,
    ),
    Kind("datetime in a zone with summer time", datetime.datetime, lambda: NOON.replace(tzinfo=BERLIN), False, False),
    Kind("timedelta", datetime.timedelta, lambda: datetime.timedelta(days=40000, microseconds=1), True, False),
    Kind("Enum", Colour, lambda: Colour.RED, True, False),
    Kind("StrEnum", Size, lambda: Size.LARGE, True, False),
    Kind("StrEnum where a str is declared", str, lambda: Size.LARGE, False, False),
    Kind("list", list[int], lambda: [1, 2], True, True),
    Kind("tuple", tuple[int, str], lambda: (1, "a"), True, False),
    Kind("tuple where a list is declared", list[int], lambda: (1, 2), False, False),
    Kind("NamedTuple", Pair, lambda: Pair(1, "a"), True, False),
    Kind("set, frozenset", frozenset[str], lambda: frozenset("abc"), True, False),
    Kind("dict with text keys", dict[str, int], lambda: {"b": 1, "a": 2}, True, True),
    Kind("dict with int keys", dict[int, str], lambda: {1: "one"}, True, False),
    Kind("dict with date keys", dict[datetime.date, int], lambda: {NOON.date(): 1}, True, False),
    Kind("dict of Decimal", dict[str, D], lambda: {"price": D("12.50")}, True, False),
    Kind("defaultdict, OrderedDict, Counter", dict[str, int], lambda: collections.Counter("aab"), False, False),
    Kind("TypedDict", Doc, lambda: {"id": 1}, True, True),
    Kind("TypedDict with a key that it does not have", Doc, lambda: {"id": 1, "extra": 2}, False, True),
    Kind("msgspec Struct", View, lambda: View(1, {"a", "b"}), True, False),
    Kind("list of Structs", list[View], lambda: [View(1), View(2, {"x"})], True, False),
    Kind("Struct of a subclass", View, lambda: WiderView(1), False, False),
    Kind("Struct that changes itself in `__post_init__`", Counted, lambda: Counted(1), False, False),
    Kind("Struct with an attribute that is no field", Roomy, more_than_roomy, False, False),
    Kind("dataclass", Data, lambda: Data(1), True, False),
    Kind("dataclass with a cached property", Data, used_data, True, False),
    Kind("dataclass with an attribute that is no field", Data, more_than_data, False, False),
    Kind("dataclass of a subclass", Data, lambda: WiderData(1), False, False),
    Kind("dataclass with `init=False`, changed", LaterData, later_data, True, False),
    Kind("pydantic model", Model, lambda: Model(id=1, price=D("1.50"), made=[2]), True, False),
    Kind("pydantic model with fields left to their defaults", Model, lambda: Model(id=1), True, False),
    Kind(
        "pydantic models in each other",
        Tree,
        lambda: Tree(root=Model(id=1), more={"a": [Model(id=2, price=None)]}),
        True,
        False,
    ),
    Kind("pydantic model of a subclass", Model, lambda: WiderModel(id=1), False, False),
    Kind("pydantic secret", WithSecret, lambda: WithSecret(token=pydantic.SecretStr("abc")), False, False),
    Kind("pydantic `exclude=True`, given", WithExcluded, lambda: WithExcluded(margin=5), False, False),
    Kind("pydantic `exclude=True`, left to its default", WithExcluded, WithExcluded, True, False),
    Kind("pydantic private attribute, changed", WithPrivate, ranked, False, False),
    Kind("pydantic validator that changes its own result", Validated, lambda: Validated(price=5), False, False),
    Kind("pydantic serializer that loses", Serialized, lambda: Serialized(price=D("12.50")), False, False),
    Kind('pydantic `extra="allow"`, what JSON has', Open, lambda: Open(id=1, name="x"), True, False),
    Kind('pydantic `extra="allow"`, what JSON has not', Open, lambda: Open(id=1, price=D("1.5")), False, False),
    Kind("pydantic model with a deque", Ring, lambda: Ring(recent=collections.deque([1])), True, False),
    Kind(
        "pydantic model with a deque of a `maxlen`",
        Ring,
        lambda: Ring(recent=collections.deque([1], maxlen=3)),
        False,
        False,
    ),
    Kind("pydantic model with a set", Labelled, lambda: Labelled(labels={"a", "b", "c"}), True, False),
]
