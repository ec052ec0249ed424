"""Tags: what invalidates an entry, and the templates that make them from arguments."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from cacheworkers.errors import DeclarationError, TagError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_tag(tag: str, max_bytes: int) -> str:
    """Return the tag.

    Raises:
        TagError: it is no text, empty, too long, or holds control characters.
    """
    if not isinstance(tag, str) or not tag:
        raise TagError(f"a tag must be a text that is not empty, got {tag!r}")
    if _CONTROL.search(tag):
        raise TagError(f"a tag may not hold control characters, got {tag!r}")
    if len(tag.encode(errors="replace")) > max_bytes:
        raise TagError(f"a tag has at most {max_bytes} bytes, {tag[:40]!r}... has {len(tag.encode())}")
    return tag


class TagTemplates:
    """The static tags of a loader: `"product:{product_id}"`."""

    def __init__(self, templates: Sequence[str], parameters: Sequence[str], *, max_bytes: int) -> None:
        """
        Raises:
            DeclarationError: a template is malformed, or names something that is no parameter.
        """
        self._max_bytes = max_bytes
        self._parts: list[list[tuple[str, int | None]]] = []
        for template in templates:
            parts: list[tuple[str, int | None]] = []
            try:
                parsed = list(string.Formatter().parse(template))
            except (ValueError, TypeError) as error:
                raise DeclarationError(f"tag template {template!r} is malformed: {error}") from None
            for text, name, spec, conversion in parsed:
                if name is None:
                    parts.append((text, None))
                    continue
                if name not in parameters or spec or conversion:
                    known = ", ".join(f"{{{p}}}" for p in parameters) or "none"
                    raise DeclarationError(f"tag template {template!r} has the field {{{name}}}; it may have {known}")
                parts.append((text, list(parameters).index(name)))
            if not any(text or at is not None for text, at in parts):
                raise DeclarationError("a tag template must not be empty")
            self._parts.append(parts)

    def expand(self, arguments: Sequence[Any]) -> tuple[str, ...]:
        """Return the tags of a call with these canonical arguments.

        Raises:
            TagError: an argument makes an illegal tag.
        """
        return tuple(
            check_tag("".join(text if at is None else f"{text}{arguments[at]}" for text, at in parts), self._max_bytes)
            for parts in self._parts
        )
