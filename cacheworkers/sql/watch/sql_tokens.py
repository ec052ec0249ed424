"""SQL tokens: a linear scanner that knows comments, literals and quoted names of PostgreSQL, SQLite and MySQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

#: How a text is read.  "ansi": nested comments, a backslash in a literal is one.  "sqlite": comments do not nest.
#: "mysql": a backslash escapes, `#` begins a comment, and `/*!` is no comment at all.
Grammar = Literal["ansi", "sqlite", "mysql"]
Kind = Literal["word", "name", "literal", "code", "mark"]


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: "word" without quotes, "name" in quotes, "literal", "code" between dollar quotes, or another "mark".
        text: a word or name in lower case and without its quotes; of code and literals, what is inside.
    """

    kind: Kind
    text: str


#: Parameters of drivers are skipped as spaces are.
_TOKEN = r"""
    (?P<space>\s++|--[^\n]*+|%\(\w++\)s|%s|\$\d++(?!\w)|:\w++{more})
  | (?P<open>/\*)
  | (?P<dollar>\$(?:[^\W\d]\w*+)?\$)
  | (?P<unicode>[uU]&(?:"(?:[^"]|"")*+(?:"|\Z)|'(?:[^']|'')*+(?:'|\Z)))
  | (?P<literal>{literal}|[eE]'(?:[^'\\]|\\.|'')*+(?:'|\Z))
  | (?P<name>"(?:[^"]|"")*+(?:"|\Z)|`(?:[^`]|``)*+(?:`|\Z)|\[(?:[^\[\]'"]|\]\])*+\])
  | (?P<word>[\w$]++)
  | (?P<mark>\S)
"""
_PLAIN_LITERAL = r"'(?:[^']|'')*+(?:'|\Z)"
_FLAGS = re.VERBOSE | re.DOTALL
_ANSI = re.compile(_TOKEN.format(more="", literal=_PLAIN_LITERAL), _FLAGS)
_MYSQL = re.compile(_TOKEN.format(more=r"|\#[^\n]*+|\*/", literal=r"'(?:[^'\\]|\\.|'')*+(?:'|\Z)"), _FLAGS)
_MARKS = {mark: Token("mark", mark) for mark in ".,;()*"}
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_EXECUTED_COMMENT = re.compile(r"/\*M?!\d*")
_UNICODE_ESCAPE = re.compile(r"\\(?:\+([0-9a-fA-F]{6})|([0-9a-fA-F]{4})|(\\))")


def tokens_of(statement: str, grammar: Grammar) -> Iterator[Token]:
    """Yield the tokens of a text, in time linear in its length; what is not closed reaches to its end."""
    pattern = _MYSQL if grammar == "mysql" else _ANSI
    at, has_dollar_quotes = 0, grammar == "ansi"
    while (match := pattern.match(statement, at)) is not None:
        at, text = match.end(), match[0]
        match match.lastgroup:
            case "space":
                pass
            case "open":
                executed = _EXECUTED_COMMENT.match(statement, match.start()) if grammar == "mysql" else None
                at = executed.end() if executed else _comment_end(statement, at, nests=grammar == "ansi")
            case "dollar" if has_dollar_quotes:
                end = statement.find(text, at)
                if end < 0:
                    has_dollar_quotes = False  # no such quotes: what follows is not skipped
                else:
                    yield Token("code", statement[at:end])
                    at = end + len(text)
            case "unicode":
                yield Token("name" if text[2] == '"' else "literal", _unescaped(_inside(text[2:])).lower())
            case "literal":
                yield Token("literal", _inside(text[1:] if text[0] in "eE" else text))
            case "name":
                yield Token("name", plain_name(_inside(text)))
            case "word":
                yield Token("word", plain_name(text))
            case _:
                yield _MARKS.get(text) or Token("mark", text)


def plain_name(name: str) -> str:
    """Return a name as it is compared: whether capitals matter depends on the database."""
    return name.lower().replace("%%", "%")  # drivers that take %s want it doubled


def _comment_end(statement: str, at: int, *, nests: bool) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(statement, at):
        if edge[0] == "*/":
            depth -= 1
            if not depth:
                return edge.end()
        elif nests:
            depth += 1
    return len(statement)


def _inside(text: str) -> str:
    """Return what is between quotes; the quote itself is doubled there."""
    last = "]" if text[0] == "[" else text[0]
    end = -1 if len(text) > 1 and text[-1] == last else None
    return text[1:end].replace(last * 2, last)


def _unescaped(text: str) -> str:
    return _UNICODE_ESCAPE.sub(lambda found: found[3] or chr(int(found[1] or found[2], 16) % 0x110000), text)
