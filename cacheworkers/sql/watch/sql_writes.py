"""SQL writes: which relations a text writes, in one pass over its tokens, and what in it cannot be judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cacheworkers.sql.watch.sql_tokens import Grammar, Token, plain_name, tokens_of

#: A text without any of these words writes nothing that could be found here.
_WRITES = re.compile(
    r"\b(?:insert|replace|merge|copy|update|delete|truncate|load|rename|do|call|exec|execute)\b", re.IGNORECASE
)
_GRAMMARS: dict[str, tuple[Grammar, ...]] = {
    "postgresql": ("ansi",),
    "sqlite": ("sqlite",),
    "mysql": ("mysql",),
    "mariadb": ("mysql",),
}
#: After these, the words of statements are something else: `FOR UPDATE`, `ON DELETE CASCADE`, `CREATE OR REPLACE`.
_NO_STATEMENT_AFTER = frozenset(("for", "key", "on", "or", ".", ":", "%", "grant", "revoke", "before", "after", "of"))
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
_DECLARES = frozenset(("function", "procedure", "trigger", "event", "rule"))


class Name(NamedTuple):
    """A relation as a statement names it, in lower case and without quotes."""

    schema: str | None
    name: str


class Writes(NamedTuple):
    """What a statement writes.

    Attributes:
        inserted, updated, deleted, truncated: the relations, views and tables alike.
        opaque: what in it cannot be judged by the text; empty if nothing.
    """

    inserted: frozenset[Name] = frozenset()
    updated: frozenset[Name] = frozenset()
    deleted: frozenset[Name] = frozenset()
    truncated: frozenset[Name] = frozenset()
    opaque: str = ""

    @property
    def names(self) -> frozenset[Name]:
        """All relations that it writes."""
        return self.inserted | self.updated | self.deleted | self.truncated


def writes_of(statement: str, dialect: str = "") -> Writes:
    """Return what a statement writes, in time linear in its length."""
    if _WRITES.search(statement) is None:
        return Writes()
    found = [
        _Parser(list(tokens_of(statement, grammar))).parse() for grammar in _GRAMMARS.get(dialect, ("ansi", "mysql"))
    ]
    whole = Writes()
    for each in found:
        whole = Writes(
            whole.inserted | each.inserted,
            whole.updated | each.updated,
            whole.deleted | each.deleted,
            whole.truncated | each.truncated,
            whole.opaque or each.opaque,
        )
    return whole


class _Parser:
    """One pass over a text's tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._inserted: set[Name] = set()
        self._updated: set[Name] = set()
        self._deleted: set[Name] = set()
        self._truncated: set[Name] = set()
        self._opaque = ""

    def parse(self) -> Writes:
        tokens = self._tokens
        if Token("word", "uescape") in tokens:
            self._opaque = "a name with UESCAPE"
        while self._at < len(tokens):
            token = tokens[self._at]
            is_first = self._at == 0 or self._is_mark(self._at - 1, ";") or self._word(self._at - 1) in _BLOCK_STARTS
            self._at += 1
            if token.kind != "word":
                continue
            if is_first and token.text in _FIRST_WORDS:
                _FIRST_WORDS[token.text](self)
            elif token.text in _VERBS and not self._follows_no_statement():
                _VERBS[token.text](self)
        return Writes(
            frozenset(self._inserted),
            frozenset(self._updated),
            frozenset(self._deleted),
            frozenset(self._truncated),
            self._opaque,
        )

    # -- statements that may stand anywhere: alone, in a CTE, after EXPLAIN ANALYZE

    def _insert(self) -> None:
        self._skip_modifiers()
        self._inserted.update(self._relation())

    def _merge(self) -> None:
        """MERGE, and REPLACE of MySQL and SQLite: rows may go, too."""
        self._skip_modifiers()
        found = set(self._relation())
        self._inserted |= found
        self._deleted |= found

    def _update(self) -> None:
        self._skip_modifiers()
        self._updated.update(self._relation())
        # MySQL: several tables, whose columns differ only by name.
        self._updated.update(name for name, _ in self._joined())

    def _delete(self) -> None:
        self._skip_modifiers()
        if self._take("from"):
            targets = list(self._relations())
            others = list(self._references()) if self._take("using") else []
        else:  # MySQL: DELETE a, b FROM a JOIN b
            begin, targets = self._at, list(self._relations())
            if not targets or not self._take("from"):
                self._at = begin
                return
            others = list(self._references())
        aliases = {alias: name for name, alias in others}
        self._deleted.update(aliases.get(target.name, target) for target in targets)

    def _truncate(self) -> None:
        self._take("table")
        self._truncated.update(self._relations())

    # -- statements that stand first

    def _copy(self) -> None:
        self._skip_modifiers()
        found = list(self._relation())
        if not found:
            return  # COPY (DELETE FROM ... RETURNING ...) TO: what is in the parentheses comes next
        if self._is_mark(self._at, "("):
            self._skip_parentheses()
        if self._take("from"):
            self._inserted.update(found)

    def _load(self) -> None:
        """MySQL: LOAD DATA ... INTO TABLE name."""
        while self._at < len(self._tokens) and not self._is_mark(self._at, ";"):
            if self._take("into"):
                self._insert()
                return
            self._at += 1

    def _rename(self) -> None:
        """MySQL: RENAME TABLE a TO b, c TO a."""
        if not self._take("table"):
            return
        while found := list(self._relation()):
            self._truncated.update(found)
            if not (self._take("to") or self._take_mark(",")):
                return

    def _explain(self) -> None:
        """Without ANALYZE, nothing is run."""
        while self._at < len(self._tokens) and not self._is_mark(self._at, ";"):
            word = self._word(self._at)
            if word in ("analyze", "analyse"):
                return
            if word in _VERBS or word == "select":
                self._skip_statement()
                return
            self._at += 1

    def _declare(self) -> None:
        """CREATE and ALTER: what they declare runs later; a body may hold semicolons between BEGIN and END.

        What follows CREATE TABLE ... AS runs now.
        """
        depth, has_body, is_table = 0, False, False
        while self._at < len(self._tokens):
            word, before = self._word(self._at), self._word(self._at - 1)
            has_body = has_body or word in _DECLARES
            is_table = is_table or word == "table"
            if is_table and not has_body and word == "as":
                return
            if has_body and (word == "begin" or (word == "case" and before != "end")):
                depth += 1
            elif has_body and word == "end" and self._word(self._at + 1) not in ("if", "loop", "while", "repeat"):
                depth = max(0, depth - 1)
            elif depth == 0 and self._is_mark(self._at, ";"):
                return
            self._at += 1

    def _do(self) -> None:
        """A block of code, which is a literal."""
        language = ""
        while self._at < len(self._tokens) and not self._is_mark(self._at, ";"):
            token = self._tokens[self._at]
            if token.kind in ("code", "literal"):
                inside = _Parser([each for each in tokens_of(token.text, "ansi") if each.kind != "code"])
                self._add(inside.parse())
                if any(each == Token("word", "execute") for each in inside._tokens):
                    self._opaque = "a DO block that runs texts"
                elif token.kind == "literal" and "\\" in token.text:
                    self._opaque = "a DO block in a literal with escapes"
            elif token.kind == "word" and token.text != "language":
                language = token.text
            self._at += 1
        if language not in ("", "plpgsql"):
            self._opaque = f"a DO block in {language}"

    def _execute(self) -> None:
        names = list(self._relation())
        self._opaque = f"the prepared statement {names[0].name}" if names else ""

    def _call(self) -> None:
        names = list(self._relation())
        self._opaque = f"the procedure {names[0].name}" if names else ""

    # -- inside

    def _add(self, writes: Writes) -> None:
        self._inserted |= writes.inserted
        self._updated |= writes.updated
        self._deleted |= writes.deleted
        self._truncated |= writes.truncated
        self._opaque = self._opaque or writes.opaque

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

    def _follows_no_statement(self) -> bool:
        before = self._at - 2
        return (
            before >= 0
            and self._tokens[before].kind in ("word", "mark")
            and (self._tokens[before].text in _NO_STATEMENT_AFTER)
        )

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


_NO_ALIAS = _LIST_ENDS.union(
    ("using", "on", "join", "inner", "left", "right", "cross", "natural", "full", "straight_join", "when", "from")
)
#: Words after which another statement begins, within a block of code.
_BLOCK_STARTS = frozenset(("begin", "then", "else", "loop"))
_VERBS = {
    "insert": _Parser._insert,
    "replace": _Parser._merge,
    "merge": _Parser._merge,
    "update": _Parser._update,
    "delete": _Parser._delete,
    "truncate": _Parser._truncate,
}
_FIRST_WORDS = {
    "copy": _Parser._copy,
    "load": _Parser._load,
    "rename": _Parser._rename,
    "explain": _Parser._explain,
    "create": _Parser._declare,
    "alter": _Parser._declare,
    "grant": _Parser._skip_statement,
    "revoke": _Parser._skip_statement,
    "comment": _Parser._skip_statement,
    "do": _Parser._do,
    "call": _Parser._call,
    "execute": _Parser._execute,
    "exec": _Parser._call,
}
