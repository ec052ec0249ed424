"""Tags: which are legal, and what templates make of arguments."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest

from cacheworkers.core.tag_templates import TagTemplates, check_tag
from cacheworkers.errors import DeclarationError, TagError


def templates(*given: str, max_bytes: int = 200) -> TagTemplates:
    return TagTemplates(given, ("product_id", "text"), max_bytes=max_bytes)


@pytest.mark.parametrize("tag", ["product:42", "a b", "{x}", "%", "é", "x" * 200, "é" * 100])
def test_legal_tags_are_returned(tag: str) -> None:
    assert check_tag(tag, 200) == tag


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("", "non-empty string, got ''"),
        (7, "must be a non-empty string"),
        (None, "must be a non-empty string"),
        (b"a", "must be a non-empty string"),
        ("a\nb", "control characters, got 'a\\\\nb'"),
        ("a\x7f", "control characters"),
        ("\ud800", "valid Unicode"),
        ("x" * 201, "at most 200 bytes, .* has 201"),
        ("é" * 101, "has 202"),
    ],
)
def test_illegal_tags_are_refused(tag: Any, message: str) -> None:
    with pytest.raises(TagError, match=message):
        check_tag(tag, 200)


def test_fields_are_filled_from_the_arguments() -> None:
    made = templates("product:{product_id}", "products", "{text}", "{product_id}/{text}/{product_id}")

    assert made.expand((42, "a")) == ("product:42", "products", "a", "42/a/42")


@pytest.mark.parametrize("value", [42, "a", None, True, datetime.date(2026, 1, 2), uuid.UUID(int=5)])
def test_a_field_is_what_an_f_string_makes_of_it(value: Any) -> None:
    assert templates("x:{product_id}").expand((value, "")) == (f"x:{value}",)


def test_braces_in_values_and_doubled_braces_stay() -> None:
    assert templates("t:{text}", "{{plain}}").expand((1, "{product_id}")) == ("t:{product_id}", "{plain}")


def test_an_argument_can_make_an_illegal_tag() -> None:
    with pytest.raises(TagError, match="control"):
        templates("t:{text}").expand((1, "a\nb"))
    with pytest.raises(TagError, match="at most 8 bytes"):
        templates("t:{text}", max_bytes=8).expand((1, "aaaaaaa"))
    with pytest.raises(TagError, match="empty"):
        templates("{text}").expand((1, ""))


def test_no_templates_make_no_tags() -> None:
    assert templates().expand((1, "a")) == ()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("p:{id}", r"'p:\{id\}' has the field \{id\}, it may have \{product_id\}, \{text\}"),
        ("p:{product_id.x}", r"field \{product_id.x\}"),
        ("p:{text[0]}", r"field \{text\[0\]\}"),
        ("p:{text!r}", r"field \{text!r\}"),
        ("p:{product_id:04}", r"field \{product_id:04\}"),
        ("p:{}", r"field \{\}"),
        ("p:{0}", r"field \{0\}"),
        ("p:{text", "malformed"),
        ("p:}", "malformed"),
        (7, "malformed"),
        ("", "empty"),
        ("a\n{text}", "control"),
        ("x" * 201, "200 bytes"),
    ],
)
def test_templates_that_make_no_tag_are_refused_when_declared(template: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        templates(template)


def test_a_loader_without_parameters_has_no_fields() -> None:
    with pytest.raises(DeclarationError, match="no field"):
        TagTemplates(("{x}",), (), max_bytes=200)


def test_templates_know_what_they_could_have_made() -> None:
    assert templates("p:{product_id}.x", "all").may_make("p:7.x")
    assert not any(templates("p:{product_id}.x", "all").may_make(tag) for tag in ("p:7", "p:7.x.y", "p:7_x", "al"))
