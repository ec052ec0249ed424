"""Statement cursor: reads names, aliases and lists of relations from the tokens of a SQL text, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cacheworkers.sql.watch.sql_tokens import Token, plain_name

_MODIFIERS = frozenset(
    ("low_priority", "high_priority", "delayed", "quick", "concurrent", "local", "ignore", "binary", "into", "table")
)
#: What ends the list of tables of an UPDATE or a DELETE.
_LIST_ENDS = frozenset(
    (
        "set",
        "where",
        "order",
        "limit",
        "returning",
        "insert",
        "update",
        "delete",
        "truncate",
        "merge",
        "replace",
        "with",
    )
)
_NO_ALIAS = _LIST_ENDS.union(
    ("using", "on", "join", "inner", "left", "right", "cross", "natural", "full", "straight_join", "when", "from")
)


class Name(NamedTuple):
    """A relation as a statement names it, in lower case and without quotes."""

    schema: str | None
    name: str


class StatementCursor:
    """A place in the tokens of a text, which moves over what it reads."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def _relations(self) -> Iterator[Name]:
        """Yield relations that commas separate; `a.*` is `a`."""
        while found := list(self._relation()):
            yield from found
            self._skip_alias()
            if not self._take_mark(","):
                return

    def _references(self) -> Iterator[tuple[Name, str]]:
        """Yield the relations of a FROM or USING list with their aliases."""
        for name in self._relation():
            yield name, self._alias(name)
        yield from self._joined()

    def _joined(self) -> Iterator[tuple[Name, str]]:
        """Yield the relations that follow a comma or JOIN, with their aliases, up to what ends the list."""
        depth = 0
        is_first = True
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token == Token("mark", ";") or (token.kind == "word" and token.text in _LIST_ENDS):
                return
            depth += (token.text in "([") - (token.text in ")]") if token.kind == "mark" else 0
            if depth < 0:
                return
            is_separator = token in (Token("mark", ","), Token("word", "join"), Token("word", "straight_join"))
            self._at += 1
            if is_separator and depth == 0:
                for name in self._relation():
                    yield name, self._alias(name)
            elif is_first and token.kind == "mark" and token.text != "*":
                return
            is_first = False

    def _relation(self) -> Iterator[Name]:
        """Yield the relation that is named next, if one is."""
        if self._take("only") and self._is_mark(self._at, "("):
            self._at += 1
        parts: list[str] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind == "mark" or token.kind == "code":
                break
            parts.append(plain_name(token.text))
            self._at += 1
            if not self._is_mark(self._at, "."):
                break
            self._at += 1
        if self._is_mark(self._at, "*"):
            self._at += 1
        if parts:
            yield Name(parts[-2] if len(parts) > 1 else None, parts[-1])

    def _alias(self, name: Name) -> str:
        has_as = self._take("as")
        word = self._tokens[self._at] if self._at < len(self._tokens) else None
        if word is None or word.kind not in ("word", "name"):
            return name.name
        if not has_as and word.kind == "word" and word.text in _NO_ALIAS:
            return name.name
        self._at += 1
        return word.text

    def _skip_alias(self) -> None:
        if self._take("as"):
            self._at += 1

    def _skip_modifiers(self) -> None:
        while True:
            word = self._word(self._at)
            if word == "or":  # SQLite: INSERT OR REPLACE
                self._at += 2
            elif word in _MODIFIERS:
                self._at += 1
            else:
                return

    def _skip_parentheses(self) -> None:
        depth = 0
        while self._at < len(self._tokens):
            depth += self._is_mark(self._at, "(") - self._is_mark(self._at, ")")
            self._at += 1
            if depth == 0:
                return

    def _skip_statement(self) -> None:
        while self._at < len(self._tokens) and not self._is_mark(self._at, ";"):
            self._at += 1

    def _word(self, at: int) -> str:
        return self._tokens[at].text if 0 <= at < len(self._tokens) and self._tokens[at].kind == "word" else ""

    def _is_mark(self, at: int, mark: str) -> bool:
        return 0 <= at < len(self._tokens) and self._tokens[at] == ("mark", mark)

    def _take(self, word: str) -> bool:
        is_next = self._word(self._at) == word
        self._at += is_next
        return is_next

    def _take_mark(self, mark: str) -> bool:
        is_next = self._is_mark(self._at, mark)
        self._at += is_next
        return is_next
