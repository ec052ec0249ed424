"""SQL writes: which relations a text writes, in one pass over its tokens, and what in it cannot be judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from cacheworkers.sql.watch.sql_tokens import Grammar, Token, tokens_of
from cacheworkers.sql.watch.statement_cursor import Name, StatementCursor

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
_DECLARES = frozenset(("function", "procedure", "trigger", "event", "rule"))


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


class _Parser(StatementCursor):
    """One pass over a text's tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__(tokens)
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
                    self._opaque = "a DO block that runs SQL from strings"
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

    def _follows_no_statement(self) -> bool:
        before = self._at - 2
        return (
            before >= 0
            and self._tokens[before].kind in ("word", "mark")
            and (self._tokens[before].text in _NO_STATEMENT_AFTER)
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
