"""TagTemplates: the static tags of a loader, filled in from its arguments; and the rules for any tag."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cacheworkers.core.tag_text import plain_text_of
from cacheworkers.errors import DeclarationError, TagError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_tag(tag: str, max_bytes: int) -> str:
    """Return the tag.

    Raises:
        TagError: it is no text, empty, too long, or holds control characters.
    """
    if not isinstance(tag, str) or not tag:
        raise TagError(f"a tag must be a non-empty string, got {tag!r}")
    if _CONTROL.search(tag):
        raise TagError(f"a tag may not hold control characters, got {tag[:80]!r}")
    try:
        length = len(tag.encode())
    except UnicodeEncodeError:
        raise TagError(f"a tag must be valid Unicode, got {tag[:80]!r}") from None
    if length > max_bytes:
        raise TagError(f"a tag may have at most {max_bytes} bytes, {tag[:40]!r}... has {length}")
    return tag


class TagTemplates:
    """The static tags of a loader: `"product:{product_id}"`.

    A field is written as an f-string writes the canonical argument, braces and all; `{{` and `}}` are plain braces.

    Attributes:
        declared: the templates as they were declared.
        fields: the parameters that are fields of any template.
    """

    def __init__(
        self,
        templates: Sequence[str],
        parameters: Sequence[str],
        *,
        max_bytes: int,
        texts: Mapping[str, Callable[[Any], str]] | None = None,
    ) -> None:
        """
        Args:
            parameters: what fields may name, in the order of the arguments; `key` for a batch loader.
            max_bytes: longest tag.
            texts: parameter -> what makes its text; else the text that all values of its type have.

        Raises:
            DeclarationError: a template is malformed, makes no legal tag, or names something that is no parameter.
        """
        self.declared = tuple(templates)
        self._max_bytes = max_bytes
        self._at = {name: at for at, name in enumerate(parameters)}
        self._makers = [(texts or {}).get(name, plain_text_of) for name in parameters]
        self._templates = [self._parse(template) for template in templates]
        used = {at for parts in self._templates for _, at in parts if at is not None}
        self.fields = tuple(name for name, at in self._at.items() if at in used)

    def expand(self, arguments: Sequence[Any]) -> tuple[str, ...]:
        """Return the tags of a call with these canonical arguments.

        Raises:
            TagError: an argument makes an illegal tag.
        """
        return tuple(check_tag(tag, self._max_bytes) for tag in self.texts(arguments))

    def texts(self, arguments: Sequence[Any]) -> list[str]:
        """Return what would be the tags of these arguments, legal or not.

        Raises:
            TagError: an argument has several texts.
        """
        makers = self._makers
        return [
            "".join(text if at is None else makers[at](arguments[at]) for text, at in parts)
            for parts in self._templates
        ]

    def skeletons(self) -> list[tuple[tuple[str | None, ...], tuple[str, ...]]]:
        """Return each template's texts, None for a field, and the names of its fields."""
        names = list(self._at)
        return [
            (
                tuple(text if at is None else None for text, at in parts),
                tuple(names[at] for _, at in parts if at is not None),
            )
            for parts in self._templates
        ]

    def may_make(self, tag: str) -> bool:
        """Return whether some call's arguments could make this tag."""
        patterns = ("".join(re.escape(text) if at is None else ".*" for text, at in parts) for parts in self._templates)
        return any(re.fullmatch(pattern, tag, re.DOTALL) for pattern in patterns)

    def _parse(self, template: str) -> list[tuple[str, int | None]]:
        """Return a template's parts: `(text, None)`, or `("", index of the argument)`."""
        try:
            parsed = list(string.Formatter().parse(template))
        except (ValueError, TypeError) as error:
            raise DeclarationError(f"tag template {template!r} is malformed: {error}") from None
        parts: list[tuple[str, int | None]] = []
        for text, name, spec, conversion in parsed:
            if text:
                parts.append((text, None))
            if name is None:
                continue
            if name not in self._at or spec or conversion:
                field = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                known = ", ".join(f"{{{each}}}" for each in self._at) or "no field"
                raise DeclarationError(f"tag template {template!r} has the field {{{field}}}, it may have {known}")
            parts.append(("", self._at[name]))
        try:  # a field adds at least nothing: what is illegal without its fields is so with them
            check_tag("".join(text for text, _ in parts) or ("?" if parts else ""), self._max_bytes)
        except TagError as error:
            raise DeclarationError(f"tag template {template!r} makes no legal tag: {error}") from None
        return parts
