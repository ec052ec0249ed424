"""Codec: which types are values, which values fit them, and which may be shared."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import msgspec
import pydantic
import pytest
from pydantic.alias_generators import to_camel
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from cacheworkers.core.codec import COMPARED_UP_TO, Codec, annotation_of
from cacheworkers.errors import CodecError, DeclarationError


class Point(msgspec.Struct, frozen=True):
    x: float
    next: Point | None = None


class Path(msgspec.Struct, frozen=True):
    points: list[Point]


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class Bird(msgspec.Struct):
    name: str


class Fish(msgspec.Struct):
    name: str


@dataclasses.dataclass(frozen=True)
class Price:
    amount: decimal.Decimal
    until: datetime.datetime | None = None


@dataclasses.dataclass
class Basket:
    prices: list[Price]


class Row(TypedDict):
    id: uuid.UUID


class Size(NamedTuple):
    width: int
    height: int


class Colour(enum.Enum):
    RED = "red"


ProductId = NewType("ProductId", int)


class Base(DeclarativeBase):
    pass


class ProductRow(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)


class DataclassRow(MappedAsDataclass, Base):
    __tablename__ = "dataclass_row"
    id: Mapped[int] = mapped_column(primary_key=True)


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    id: int
    name: str | None = None


class Camel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel)
    product_id: int
    list_price: decimal.Decimal


class TwoAliases(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    product_id: int = pydantic.Field(0, validation_alias="in", serialization_alias="out")

    @pydantic.computed_field  # type: ignore[prop-decorator]  # mypy does not know it without the plugin
    @property
    def double(self) -> int:
        return 2 * self.product_id


class Tea(pydantic.BaseModel):
    kind: Literal["tea"] = "tea"


class Milk(pydantic.BaseModel):
    kind: Literal["milk"] = "milk"


@pydantic.dataclasses.dataclass
class Checked:
    n: int


@dataclasses.dataclass
class Page:
    items: list[Model]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 7),
        (str, "é"),
        (None, None),
        (bytes, b"\xff"),
        (Any, {"a": [1, None, "x"]}),
        (int | None, None),
        (dict[int, str], {1: "a"}),
        (dict[uuid.UUID, int], {uuid.UUID(int=1): 1}),
        (set[int], {1, 2}),
        (tuple[int, str], (1, "a")),
        (Point, Point(1.0, Point(2.0))),
        (list[Point | None], [Point(1.0), None]),
        (Cat | Dog, Dog("Rex")),
        (Basket, Basket([Price(decimal.Decimal("1.50"), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))])),
        (Row, {"id": uuid.UUID(int=5)}),
        (Size, Size(1, 2)),
        (Colour, Colour.RED),
        (ProductId, ProductId(4)),
        (Annotated[int, msgspec.Meta(ge=1)], 1),
        (Model, Model(id=1)),
        (Model | None, None),
        (dict[int, list[Model]], {1: [Model(id=1, name="a")]}),
        (Camel, Camel(productId=1, listPrice=decimal.Decimal("1.5"))),
        (TwoAliases, TwoAliases(**{"in": 7})),
        (Annotated[Tea | Milk, pydantic.Field(discriminator="kind")], Milk()),
        (Checked, Checked(3)),
        (Page, Page([Model(id=1)])),
    ],
)
def test_values_survive_their_json(annotation: Any, value: Any) -> None:
    codec = Codec(annotation)

    decoded = codec.decode(codec.encode(value))

    assert decoded == value and type(decoded) is type(value)


def test_pydantic_aliases_are_in_the_json_where_they_read_back() -> None:
    camel = Codec(Camel).encode(Camel(productId=1, listPrice=decimal.Decimal("1.5")))

    assert msgspec.json.decode(camel) == {"productId": 1, "listPrice": "1.5"}
    assert msgspec.json.decode(Codec(TwoAliases).encode(TwoAliases(**{"in": 7}))) == {"product_id": 7}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (ProductRow, "cannot be ProductRow: ProductRow is an ORM row; return .* Struct, .* not an ORM row"),
        (list[ProductRow], "ORM row"),
        (ProductRow | None, "ORM row"),
        (DataclassRow, "DataclassRow is an ORM row"),
        (dict[int, ProductRow | Model], "ORM row"),
        (Bird | Fish, "tagged"),
        (Bird | dict[str, str], "more than one dict-like type"),
        (list[int] | tuple[int, ...], "array-like"),
        (str | uuid.UUID, "str-like"),
        (Tea | Milk, "cannot tell Tea and Milk apart; give the union a discriminator"),
        (list[Tea | Milk | None], "discriminator"),
        (Codec, "JSON cannot carry Codec"),
        (list[object], "JSON cannot carry object"),
        (complex, "complex"),
        (Callable[[], int], "Callable"),
        (dict[tuple[int, int], int], "keys of a JSON object"),
    ],
)
def test_types_that_json_cannot_carry_are_refused_when_declared(annotation: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Codec(annotation)


def test_a_field_whose_type_is_unknown_is_refused_when_declared() -> None:
    class Lost(msgspec.Struct):
        field: Nowhere  # type: ignore[name-defined]  # noqa: F821

    class LostModel(pydantic.BaseModel):
        field: "Nowhere"  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(DeclarationError, match=r"cannot be .*Lost: .*'Nowhere'"):
        Codec(Lost)
    with pytest.raises(DeclarationError, match=r"cannot be .*LostModel: .*not fully defined"):
        Codec(LostModel)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, "a", "must return int, got a str"),
        (Point, {"y": 1}, "must return Point, got a dict"),
        (Point, None, "NoneType"),
        (Any, ProductRow(id=1), "a ProductRow cannot be stored as JSON: .* not an ORM row"),
        (Any, object(), "object"),
        (str, "\ud800", "surrogates"),
        (float, float("nan"), "finite, got nan"),
        (float | None, float("inf"), "finite, got inf"),
        (Any, {"a": [{"b": float("-inf")}]}, "finite, got -inf"),
        (Point, Point(float("nan")), "finite"),
        (list[Any], [Price(decimal.Decimal(1)), (float("nan"),)], "finite"),
        (Model, {"id": "x"}, "must return Model, got a dict"),
        (Model, 7, "must return Model, got a int"),
        (dict[str, Model | float], {"a": float("nan")}, "finite"),
        (Annotated[int, msgspec.Meta(ge=1)], 0, ">= 1"),
    ],
)
def test_values_that_do_not_fit_are_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        Codec(annotation).encode(value)


def test_none_beside_a_finite_float_is_no_infinity() -> None:
    codec = Codec(list[float | None])

    assert codec.decode(codec.encode([1.5, None])) == [1.5, None]


@pytest.mark.parametrize("annotation", [Point, Model, dict[str, int], Any])
@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 5000, b"\x80\x04K\x01."])
def test_foreign_payloads_are_refused(annotation: Any, payload: bytes) -> None:
    with pytest.raises(CodecError, match="the payload is no"):
        Codec(annotation).decode(payload)


@pytest.mark.parametrize(
    ("annotation", "admits"),
    [
        (Any, True),
        (None, True),
        (int | None, True),
        (Annotated[Point | None, "x"], True),
        (Literal["a", None], True),
        (Model | None, True),
        (int, False),
        (list[None], False),
        (dict[str, int | None], False),
    ],
)
def test_none_is_a_value_only_where_the_type_itself_says_so(annotation: Any, admits: bool) -> None:
    assert Codec(annotation).admits_none is admits


@pytest.mark.parametrize(
    ("annotation", "is_shareable"),
    [
        (int, True),
        (Point, True),
        (Point | None, True),
        (tuple[Point, ...], True),
        (frozenset[str], True),
        (Price, True),
        (Size, True),
        (Colour, True),
        (ProductId, True),
        (Model, True),
        (Literal["a"], True),
        (Path, False),
        (Basket, False),
        (Cat, False),
        (Row, False),
        (Camel, False),
        (list[int], False),
        (tuple[list[int], ...], False),
        (tuple, False),
        (Any, False),
    ],
)
def test_only_what_is_immutable_all_the_way_down_is_shared(annotation: Any, is_shareable: bool) -> None:
    assert Codec(annotation).is_shareable is is_shareable


def test_annotation_of_a_loader() -> None:
    class Local(msgspec.Struct):
        x: int

    def one(load: Any, n: int) -> Local | None: ...
    async def later(load: Any, n: int) -> Local: ...
    def many(load: Any, keys: list[int]) -> dict[int, Local]: ...
    def plain(load, keys): ...  # type: ignore[no-untyped-def]
    def limited(load: Any) -> Annotated[int, msgspec.Meta(ge=1)]: ...  # type: ignore[empty-body]

    assert annotation_of(one) == Local | None
    assert annotation_of(later) is Local
    assert annotation_of(many, is_batch=True) is Local
    assert annotation_of(plain) is annotation_of(plain, is_batch=True) is Any
    assert annotation_of(limited) == Annotated[int, msgspec.Meta(ge=1)]


def test_a_batch_loader_returns_a_dict() -> None:
    def many(load: Any, keys: list[int]) -> list[Point]: ...  # type: ignore[empty-body]

    with pytest.raises(DeclarationError, match=r"many must return dict\[K, V\], got list"):
        annotation_of(many, is_batch=True)


@pytest.mark.parametrize(("annotation", "is_always"), [(list[list[int]], False), (list[Any], True), (list, True)])
def test_a_large_value_is_compared_on_its_first_loads_then_sampled_unless_its_type_is_open(
    annotation: Any, is_always: bool
) -> None:
    """A value that is not compared is decoded all the same, and has the bytes of an equal one."""
    codec, odd = Codec(annotation), [(1, 2)] * 2000

    def is_refused() -> bool:
        try:
            codec.encode(odd)
        except CodecError:
            return True
        return False

    refused = [is_refused() for _ in range(24)]

    assert refused == [is_always or n <= 8 or n % 8 == 0 for n in range(1, 25)]
    with pytest.raises(CodecError):
        Codec(list[int]).encode(["1"] * 4000)


def test_a_large_value_has_the_bytes_of_an_equal_one_compared_or_not() -> None:
    codec, ints = Codec(list[float]), [1] * COMPARED_UP_TO

    assert {codec.encode(ints) for _ in range(20)} == {codec.encode([1.0] * COMPARED_UP_TO)}


def test_a_part_of_another_type_is_named_by_its_place() -> None:
    """A key of a dict is `[...]` there, as docs/reference/values.md says."""
    with pytest.raises(CodecError, match=r"at `\$\[1\]\[\.\.\.\]`$"):
        Codec(list[dict[str, int]]).encode([{"a": 1}, {"b": "x"}])


def test_a_dataclass_s_json_is_whole_whatever_has_made_it() -> None:
    """What msgspec makes, of another service's answer say, leaves its defaults to the class."""

    @dataclasses.dataclass
    class Rate:
        cents: int
        currency: str = "EUR"

    codec = Codec(list[Rate])

    assert codec.encode([msgspec.convert({"cents": 5}, Rate)]) == codec.encode([Rate(5)])
