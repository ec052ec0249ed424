"""One value has one text in tags, or is refused: argument types on one side, column types on the other."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from typing import Any, Literal

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from cacheworkers import Cache, Config, ConfigError, DeclarationError, Load, TagError, tag
from cacheworkers.core.tag_text import TagKinds, TextKind, kind_of, plain_text_of
from cacheworkers.sql.watch.column_text import kind_of_column, text_maker


class Colour(enum.StrEnum):
    RED = "red"


class Rank(enum.IntEnum):
    ONE = 1


class Level(enum.Enum):
    LOW = "low"


class Wrapped(sa.TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True


#: Types of arguments, and the kind of their texts; None where they have several.
ARGUMENTS: dict[Any, TextKind | None] = {
    int: TextKind.INT,
    str: TextKind.STR,
    bool: TextKind.BOOL,
    uuid.UUID: TextKind.UUID,
    datetime.date: TextKind.DATE,
    Colour: TextKind.STR,
    Rank: TextKind.INT,
    Literal["a", "b"]: TextKind.STR,
    int | None: TextKind.INT,
    float: None,
    decimal.Decimal: None,
    datetime.datetime: None,
    datetime.timedelta: None,
    bytes: None,
    Level: None,
    list[int]: None,
    int | str: None,
}
#: Types of columns, likewise.
COLUMNS: list[tuple[Any, TextKind | None]] = [
    (sa.BigInteger(), TextKind.INT),
    (sa.Text(), TextKind.STR),
    (sa.String(5), TextKind.STR),
    (sa.Text(collation="de-x-icu"), TextKind.STR),
    (sa.Enum("a", "b", native_enum=False), TextKind.STR),
    (sa.Boolean(), TextKind.BOOL),
    (sa.Uuid(), TextKind.UUID),
    (sa.Date(), TextKind.DATE),
    (sa.BigInteger().with_variant(sa.Integer(), "sqlite"), TextKind.INT),
    (sa.Text().with_variant(sa.CHAR(5), "postgresql"), None),
    (sa.Text().with_variant(sa.Uuid(), "postgresql"), None),
    (sa.CHAR(5), None),
    (sa.Text(collation="NOCASE"), None),
    (sa.String(5, collation="utf8mb4_0900_ai_ci"), None),
    (postgresql.CITEXT(), None),
    (sa.Numeric(5, 2), None),
    (sa.Float(), None),
    (sa.DateTime(), None),
    (sa.Time(), None),
    (sa.Interval(), None),
    (sa.LargeBinary(), None),
    (sa.Enum(Level), None),
    (sa.Enum(Colour), None),
    (postgresql.INET(), None),
    (postgresql.ARRAY(sa.Integer), None),
    (Wrapped(), None),
]


@pytest.mark.parametrize("annotation", ARGUMENTS, ids=str)
def test_an_argument_has_one_text_or_is_refused(annotation: Any) -> None:
    if ARGUMENTS[annotation] is None:
        with pytest.raises(TagError, match="several"):
            kind_of(annotation)
    else:
        assert kind_of(annotation) is ARGUMENTS[annotation]


@pytest.mark.parametrize(("column", "kind"), COLUMNS, ids=str)
def test_a_column_has_one_text_or_is_refused(column: Any, kind: TextKind | None) -> None:
    if kind is None:
        with pytest.raises(ConfigError, match="cannot be a field of a tag's template"):
            kind_of_column("item.key", sa.Column(column))
    else:
        assert kind_of_column("item.key", sa.Column(column)) is kind


@pytest.mark.parametrize("column", [postgresql.CITEXT(), sa.Text(collation="NOCASE"), Wrapped()], ids=str)
def test_a_column_that_holds_texts_equal_is_refused_with_one_form_of_them(column: Any) -> None:
    """A tag of each text would differ, whoever makes it."""
    with pytest.raises(ConfigError, match=r'such as tag\("user", name\.casefold\(\)\), in a function of the row'):
        kind_of_column("user.name", sa.Column(column))


def one_of_each_kind(types: list[tuple[Any, TextKind | None]]) -> list[Any]:
    """Mark all but the first type of each kind as heavy: two types of one kind go the same way."""
    first = {kind: each for each, kind in reversed(types)}
    return [pytest.param(each, kind, marks=() if first[kind] is each else pytest.mark.heavy) for each, kind in types]


@pytest.mark.parametrize(("annotation", "argument_kind"), one_of_each_kind([*ARGUMENTS.items()]), ids=str)
@pytest.mark.parametrize(("column", "kind"), one_of_each_kind(COLUMNS), ids=str)
@pytest.mark.parametrize("is_loader_first", [True, False])
def test_loader_and_watch_make_one_tag_or_one_of_them_is_refused(
    annotation: Any, argument_kind: TextKind | None, column: Any, kind: TextKind | None, is_loader_first: bool
) -> None:
    """Every kind of argument with every kind of column, whichever is declared first; heavy: every type."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        key: Mapped[Any] = mapped_column(column)

    def price(load: Any, product_key: Any) -> int:
        return 1

    price.__annotations__["product_key"] = annotation
    cache = Cache(Config())
    steps = [
        lambda: cache.loader(tags=("key:{product_key}",))(price),
        lambda: cache.watch(sessionmaker(sa.create_engine("sqlite://")), {Item: ["key:{key}"]}),
    ]
    is_well = kind is not None and argument_kind is kind
    try:
        for step in steps if is_loader_first else reversed(steps):
            step()
    except (DeclarationError, ConfigError):
        assert not is_well
    else:
        assert is_well
    cache.close()


VALUES: dict[TextKind, st.SearchStrategy[Any]] = {
    TextKind.INT: st.integers(-(2**70), 2**70),
    TextKind.STR: st.text(),
    TextKind.BOOL: st.booleans(),
    TextKind.UUID: st.uuids(),
    TextKind.DATE: st.dates(),
}


@given(st.data())
def test_all_sides_make_the_same_text(data: st.DataObject) -> None:
    """Arguments, columns, f-strings, and `tag`."""
    kind = data.draw(st.sampled_from(TextKind))
    value = data.draw(VALUES[kind] | st.none())

    assert plain_text_of(value) == text_maker(kind)(value) == f"{value}"
    assert tag("product", value) == f"product:{value}"


@pytest.mark.parametrize(
    ("kind", "assigned", "text"),
    [
        (TextKind.INT, "7", "7"),
        (TextKind.INT, True, "1"),
        (TextKind.INT, 5.0, "5"),
        (TextKind.BOOL, 1, "True"),
        (TextKind.UUID, "ABCDEFAB-CDEF-4ABC-8DEF-ABCDEFABCDEF", "abcdefab-cdef-4abc-8def-abcdefabcdef"),
        (TextKind.DATE, datetime.datetime(2026, 1, 2, 3), "2026-01-02"),
        (TextKind.STR, Colour.RED, "red"),
        (TextKind.INT, "no number", "no number"),
    ],
)
def test_what_is_assigned_to_a_column_has_the_text_of_what_will_be_read(
    kind: TextKind, assigned: Any, text: str
) -> None:
    assert text_maker(kind)(assigned) == text


@given(st.integers(-(10**9), 10**9))
def test_equal_numbers_are_one_tag(number: int) -> None:
    same = [number, float(number), decimal.Decimal(number), decimal.Decimal(f"{number}.00")]

    assert {tag("price", each) for each in same} == {f"price:{number}"}


def test_tags_of_values_with_several_texts() -> None:
    berlin = datetime.timezone(datetime.timedelta(hours=1))
    at = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)

    assert tag("at", at) == tag("at", at.astimezone(berlin)) == "at:2026-01-02T03:00:00+00:00"
    assert tag("price", decimal.Decimal("19.50")) == tag("price", 19.5) == "price:19.5"
    assert tag("level", Level.LOW, Colour.RED, Rank.ONE, None) == "level:low:red:1:None"
    for odd in (object(), [1], float("nan")):
        with pytest.raises(TagError):
            tag("x", odd)


@pytest.mark.parametrize(
    ("kind", "by_hand", "loaders"),
    [
        (int, "007", "7"),
        (int, "19.00", "19"),
        (int, "1E+2", "100"),
        (int, "True", "1"),
        (int, "-0", "0"),
        (int, "19.50", None),
        (int, "seven", None),
        (int, "Infinity", None),
        (int, "1E+999999999", None),
        (int | None, "None", "None"),
        (bool, "1", "True"),
        (bool, "false", "False"),
        (uuid.UUID, "ABCDEFABCDEF4ABC8DEFABCDEFABCDEF", "abcdefab-cdef-4abc-8def-abcdefabcdef"),
        (uuid.UUID, "lamp", None),
        (datetime.date, "2026-01-02 00:00:00", "2026-01-02"),
        (datetime.date, "today", None),
        (str, "007", None),
    ],
)
def test_a_tag_written_by_hand_reaches_the_loader_of_its_value(kind: Any, by_hand: str, loaders: str | None) -> None:
    kinds = TagKinds()
    kinds.add_loader("page", ("page:", None, "!"), [kind_of(kind)])
    kinds.add_loader("shelf", ("shelf:", None, ":", None), [kind_of(int), kind_of(str)])

    found = kinds.with_loaders_texts([f"page:{by_hand}!", "other:1", "shelf:01:a:b"])

    wanted = [] if loaders is None or loaders == by_hand else [f"page:{loaders}!"]
    assert found == [f"page:{by_hand}!", "other:1", "shelf:01:a:b", *wanted, "shelf:1:a:b"]


@pytest.mark.parametrize("kind", [str, str | None, Any])
@pytest.mark.parametrize(
    ("by_hand", "loaders"),
    [
        ("ab   ", {"ab"}),
        ("abcdefab-cdef-4abc-8def-abcdefabcdef", {"ABCDEFAB-CDEF-4ABC-8DEF-ABCDEFABCDEF"}),
        ("08:00:2B:01:02:03", {"08:00:2b:01:02:03"}),
        ("Level.LOW", {"LOW", "low"}),
        ("Level.LOW ", set()),  # is padded, and no member
        ("example.com", set()),
        ("a b", set()),
        ("lamp", set()),
    ],
)
def test_a_text_written_by_hand_reaches_what_a_database_holds_equal(kind: Any, by_hand: str, loaders: set[str]) -> None:
    kinds = TagKinds()
    kinds.add_loader("page", ("page:", None), [kind_of(kind)])

    found = kinds.with_loaders_texts([f"page:{by_hand}"])

    wanted = loaders or {by_hand.rstrip()} - {by_hand}
    assert found[0] == f"page:{by_hand}"
    assert set(found[1:]) == {f"page:{each}" for each in wanted}


def test_a_tag_by_hand_becomes_a_bounded_number_of_tags() -> None:
    kinds = TagKinds()
    kinds.add_loader("page", (None, ":", None, ":", None, ":", None), [kind_of(str)] * 4)

    assert len(kinds.with_loaders_texts(["A.B:A.B:A.B:A.B"])) <= 17


def test_an_invalidation_by_hand_is_the_loader_s(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache()
    loads = []

    @cache.loader(fresh_for=300, tags=("page:{number}",))
    def page(load: Load, number: int) -> int:
        loads.append(number)
        return number

    assert [page.get(7), page.get(8)] == [7, 8]
    cache.invalidate(f"page:{decimal.Decimal('7.00')}")
    assert [page.get(7), page.get(8)] == [7, 8]
    assert loads == [7, 8, 7]
