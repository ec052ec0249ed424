"""Calls: which arguments are one call, which are refused, and what the text of a call is."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import re
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest

from cacheworkers.core.signature import Signature, loader_name_of
from cacheworkers.errors import CallError, DeclarationError


class Colour(enum.Enum):
    RED = "red"


class Range(msgspec.Struct, frozen=True):
    least: int
    most: int = 9


def product(load: Any, product_id: int) -> None: ...


def search(load: Any, text: str, page: int = 1, colour: Colour | None = None) -> None: ...


def of_type(annotation: Any) -> Signature:
    def one(load, value): ...  # type: ignore[no-untyped-def]

    one.__annotations__["value"] = annotation
    return Signature("one", one)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((42,), {}), ((), {"product_id": 42}), (("42",), {}), ((), {"product_id": "42"}), ((42.0,), {})],
)
def test_all_ways_to_say_the_same_are_one_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    call = Signature("product", product).bind(args, kwargs)

    assert call.text == "product[42]"
    assert call.arguments == (42,) and type(call.arguments[0]) is int


def test_defaults_are_filled() -> None:
    signature = Signature("search", search)

    assert signature.bind(("a",), {}).text == 'search["a",1,null]'
    assert signature.bind(("a",), {"colour": "red"}) == signature.bind(("a", 1, Colour.RED), {})
    assert signature.bind((), {"page": "2", "text": "a"}).arguments == ("a", 2, None)
    assert signature.parameters == ("text", "page", "colour")


@pytest.mark.parametrize(
    ("annotation", "one", "other"),
    [
        (float, 0.0, -0.0),
        (float, 1, 1.0),
        (list[float], [0.0, 1], (-0.0, 1.0)),
        (decimal.Decimal, "1.50", decimal.Decimal("1.5")),
        (decimal.Decimal, "1E+2", "100.00"),
        (decimal.Decimal, "-0.0", "0"),
        (uuid.UUID, uuid.UUID(int=5), uuid.UUID(int=5).hex),
        (datetime.date, datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime, "2026-01-02T02:00:00+02:00", "2026-01-02T00:00:00Z"),
        (frozenset[int], [3, 1, 2], {1, 2, 3}),
        (dict[str, int], {"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Range, Range(1), {"most": 9, "least": 1}),
        (Colour, Colour.RED, "red"),
        (Any, {2: 0, 10: 0}, {"10": 0, "2": 0}),
        (dict[int, int], {2: 0, 10: 0}, {10: 0, "2": 0}),
    ],
)
def test_equal_arguments_are_one_call(annotation: Any, one: Any, other: Any) -> None:
    signature = of_type(annotation)

    assert signature.bind((one,), {}) == signature.bind((other,), {})
    assert signature.parse(signature.bind((one,), {}).text) == signature.bind((other,), {})


@pytest.mark.parametrize(
    ("annotation", "one", "other"),
    [
        (Any, 1, True),
        (Any, 1, "1"),
        (Any, None, "null"),
        (Any, ["a,b"], ["a", "b"]),
        (int | str, 1, "1"),
        (decimal.Decimal, "1.0000000000000000000000000000000000001", "1"),
        (str, '"],["', ""),
    ],
)
def test_different_arguments_are_different_calls(annotation: Any, one: Any, other: Any) -> None:
    signature = of_type(annotation)

    assert signature.bind((one,), {}).text != signature.bind((other,), {}).text


@pytest.mark.parametrize(
    ("annotation", "wrong", "message"),
    [
        (int, "abc", r"one\(value='abc'\) is not a valid call: .*int"),
        (str, 7, "str"),
        (str, "\ud800", "surrogates"),
        (float, float("nan"), "finite, got nan"),
        (Any, [float("inf")], "finite, got inf"),
        (decimal.Decimal, "NaN", "finite"),
        (Any, object(), "object"),
        (Annotated[int, msgspec.Meta(ge=1)], 0, ">= 1"),
        (str, "x" * 600, "at most 512 bytes, one.* has 607"),
        (Literal["a", "b"], "c", "c"),
    ],
)
def test_what_makes_no_call_is_refused(annotation: Any, wrong: Any, message: str) -> None:
    with pytest.raises(CallError, match=message):
        of_type(annotation).bind((wrong,), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'text'"),
        (("a", 1, None, 4), {}, "too many positional"),
        (("a",), {"text": "b"}, "multiple values"),
        (("a",), {"pgae": 2}, "no parameter for pgae=2"),
    ],
)
def test_wrong_arguments_are_named(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError, match=message):
        Signature("search", search).bind(args, kwargs)


def test_length_counts_bytes_and_the_limit_itself_is_allowed() -> None:
    signature = Signature("search", lambda load, text: None, max_bytes=16)

    assert len(signature.bind(("éé",), {}).text.encode()) == 14
    assert len(signature.bind(("ééé",), {}).text.encode()) == 16
    with pytest.raises(CallError, match="has 18"):
        signature.bind(("éééé",), {})


def test_a_number_too_long_for_the_limit_is_refused() -> None:
    signature = Signature("product", product, max_bytes=16)

    assert signature.bind((1234567,), {}).text == "product[1234567]"
    with pytest.raises(CallError, match="16 bytes"):
        signature.bind((12345678,), {})
    with pytest.raises(CallError):
        Signature("product", product).bind((10**600,), {})


def test_version_and_dots_are_part_of_the_text() -> None:
    call = Signature("shop.product", product, version=2).bind((42,), {})

    assert call.text == "shop.product@2[42]"
    assert loader_name_of(call.text) == "shop.product"
    assert loader_name_of("product[42]") == "product"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("products[42]", r"is its name and arguments as JSON, got "),
        ("product@2[42]", r"is its name and arguments as JSON, got "),
        ("product", r"is its name and arguments as JSON, got "),
        ("product[42", "not a call"),
        ("product[42]]", "not a call"),
        ("product[1,2]", "not a call"),
        ('product["x"]', "int"),
        ('product["42"]', "int"),
        ("product[ 42]", r"canonical, 'product\[42\]'"),
        ("product[42.0]", "int"),
    ],
)
def test_a_text_that_bind_does_not_make_is_refused(text: str, message: str) -> None:
    with pytest.raises(CallError, match=message):
        Signature("product", product).parse(text)


def test_a_text_may_leave_out_what_has_a_default() -> None:
    def shelf(load: Any, author: int, page: int = 1, at_most: float = 10, by: str | None = None) -> None: ...

    signature = Signature("shelf", shelf)

    assert signature.completed("shelf[7]") == signature.bind((7,), {}).text == "shelf[7,1,10.0,null]"
    assert signature.completed("shelf[7, 2]") == "shelf[7,2,10.0,null]"
    assert signature.completed('shelf["x"]') == 'shelf["x",1,10.0,null]', "`parse` names the wrong one"
    for same in (
        "shelf[7,1,10.0,null]",
        "shelf[7",
        "shelf[" + "[" * 9999,
        "shelf[\ud800",
        "shelf[1,2,3.0,null,5]",
        "[7]",
        "page[7]",
    ):
        assert signature.completed(same) == same


def test_a_text_may_be_written_as_a_call_is_in_python_or_without_arguments() -> None:
    """`explain book_list` and `explain 'book(3)'` mean one call alone."""

    def shelf(load: Any, author: int = 1, page: int = 1) -> None: ...

    signature = Signature("shelf", shelf, version=2)

    assert {signature.completed(text) for text in ("shelf", "shelf()", "shelf[]", "shelf(1)", "shelf@2[1]")} == {
        "shelf@2[1,1]"
    }
    assert signature.completed('shelf("x")') == 'shelf@2["x",1]'
    for same in ("shelf(1", "shelf@1[1]", "shelf:1", "shelfs", "shelf)"):
        assert signature.completed(same) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search[]", 'search(q, by, page=1): q, by missing; write \'search["text","text",42]\', arguments as JSON'),
        ('search["lamp"]', "search(q, by, page=1): by missing"),
        ('search["lamp",2]', "search(q, by, page=1): Expected `str`, got `int` - at `$[1]`"),
    ],
)
def test_what_a_text_lacks_is_named(text: str, message: str) -> None:
    """`page` has a default, so that its absence is no error."""

    def search(load: Any, q: str, by: str, page: int = 1) -> None: ...

    signature = Signature("search", search)

    with pytest.raises(CallError, match=re.escape(message)):
        signature.parse(signature.completed(text))


@pytest.mark.parametrize("name", ["", "Product", "1st", "a-b", "a b", "<lambda>", "a\n", "p[", "x" * 101, None])
def test_bad_names_are_refused(name: Any) -> None:
    with pytest.raises(DeclarationError, match="must match"):
        Signature(name, product)


def test_parameters_that_make_no_call_are_refused() -> None:
    def wrong_default(load: Any, page: int = "first") -> None: ...  # type: ignore[assignment]  # that is the point

    def unknown_class(load: Any, row: Signature) -> None: ...

    refused: list[tuple[Callable[..., Any], str]] = [
        (lambda: None, "f must take `load` as its first parameter"),
        (lambda product_id: None, r"`load`.*got f\(product_id\)"),
        (lambda *load: None, "`load`"),
        (lambda load, *args: None, r"`\*args`"),
        (lambda load, **options: None, r"`\*\*options`"),
        (lambda load, *, page: None, "`page`"),
        (wrong_default, "default of 'page' in f must fit its annotation, got 'first'"),
        (unknown_class, "parameter 'row' of f cannot be Signature"),
    ]
    for function, message in refused:
        with pytest.raises(DeclarationError, match=message):
            Signature("f", function)


def test_a_load_that_is_not_used_may_say_so() -> None:
    assert Signature("f", lambda _load, page: None).parameters == ("page",)
    assert Signature("f", lambda _: None).bind((), {}).text == "f[]"


def test_a_batch_call_has_one_key() -> None:
    def prices(load: Any, skus: list[tuple[str, int]]) -> None: ...

    signature = Signature("prices", prices, is_batch=True)

    call = signature.bind((["a", "1"],), {})

    assert call.text == 'prices[["a",1]]' and call.arguments == (("a", 1),)
    assert signature.parse(call.text) == call
    assert signature.parameters == ("key",)


def test_a_batch_loader_takes_only_keys_that_a_dict_can_have() -> None:
    with pytest.raises(CallError, match="unhashable"):
        Signature("f", lambda load, keys: None, is_batch=True).bind(([1],), {})
    with pytest.raises(DeclarationError, match=r"exactly \(load, keys\), got \(load, keys, page\)"):
        Signature("f", lambda load, keys, page: None, is_batch=True)


@pytest.mark.parametrize(
    ("annotation", "is_key"),
    [
        (int, True),
        (str | None, True),
        (Colour, True),
        (datetime.date, True),
        (Literal["a", "b"], True),
        (Annotated[int, msgspec.Meta(ge=1)], True),
        (Literal["a", 1], False),
        (int | bool, False),
        (float, False),
        (decimal.Decimal, False),
        (datetime.datetime, False),
        (Any, False),
        (list[int], False),
    ],
)
def test_raw_arguments_serve_as_keys_only_where_equal_means_same(annotation: Any, is_key: bool) -> None:
    assert of_type(annotation).positional_keys is is_key


def test_annotations_may_name_what_is_local_to_a_function() -> None:
    """Known only from the enclosing function: string annotations do not make a closure."""

    class Size(enum.Enum):
        LARGE = "l"

    def shirt(load: Any, size: Size) -> None: ...

    assert Signature("shirt", shirt).bind(("l",), {}).arguments == (Size.LARGE,)


def test_annotations_may_name_what_is_in_the_closure() -> None:
    def declare() -> Callable[..., Any]:
        class Size(enum.Enum):
            LARGE = "l"

        def shirt(load: Any, size: Size) -> Size:
            return Size(size)

        return shirt

    assert Signature("shirt", declare()).bind(("l",), {}).text == 'shirt["l"]'


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    def lost(load: Any, size: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(DeclarationError, match=r"'size' in .*lost, 'Nowhere', cannot be resolved"):
        Signature("lost", lost)


def test_the_type_of_load_need_not_be_known() -> None:
    def lazy(load: OnlyForTypeCheckers, page: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert Signature("lazy", lazy).bind(("3",), {}).text == "lazy[3]"


def test_wrapped_functions_and_methods_keep_their_annotations() -> None:
    @functools.wraps(product)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    class Shop:
        def product(self, load: Any, product_id: int) -> None: ...

        def __call__(self, load: Any, product_id: int) -> None: ...

    for function in (wrapper, Shop().product, Shop(), functools.partial(search, colour=None)):
        is_partial = isinstance(function, functools.partial)
        if is_partial:
            with pytest.raises(DeclarationError, match="colour"):  # made keyword-only by partial
                Signature("p", function)
        else:
            assert Signature("p", function).bind(("7",), {}).text == "p[7]"


@pytest.mark.parametrize(("kind", "keys"), [(int, range(3)), (str, "abc"), (bool, (True, False))])
def test_texts_of_many_are_those_of_each(kind: type, keys: Any) -> None:
    """First and last alike, whatever equal key of another type was there before."""

    def find(load: Any, key: Any) -> int:
        return 0

    find.__annotations__["key"] = kind
    signature = Signature("find", find)

    for _ in range(2):
        for key in keys:
            assert signature.texts([key]) == {key: signature.bind((key,), {}).text}


def test_an_equal_key_of_another_type_is_converted_and_not_remembered() -> None:
    def find(load: Any, key: int) -> int:
        return 0

    signature = Signature("find", find)

    assert signature.texts([1, "2"]) == {1: "find[1]", "2": "find[2]"}
    assert signature.texts([2.0, 1.0]) == {2.0: "find[2]", 1.0: "find[1]"}
    for wrong in (10**600, "x"):
        for _ in range(2):
            with pytest.raises(CallError):
                signature.texts([1, wrong])


def test_texts_that_are_remembered_are_bounded() -> None:
    def find(load: Any, key: int) -> int:
        return 0

    signature = Signature("find", find)

    for key in range(30_000):
        assert signature.texts([key]) == {key: f"find[{key}]"}
        assert len(signature._texts) <= 8192
