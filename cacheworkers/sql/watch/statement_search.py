"""Statement search: which SQL texts in a code base or a log a watch would refuse, before it is switched on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cacheworkers.sql.watch.statements import Statements

_BEGINS = re.compile(
    r"\b(?:with|explain|insert|replace|merge|copy|update|delete|truncate|load|rename|do|call)\b", re.IGNORECASE
)
_LONGEST_SHOWN = 200


class RefusedStatement(NamedTuple):
    """A text that a watched session would refuse.

    Attributes:
        where: file and line.
        changes: the watched tables that it changes, or may change.
        statement: its beginning.
    """

    where: str
    changes: tuple[str, ...]
    statement: str


def refused_statements(paths: Iterable[Path], tables: Iterable[str], dialect: str = "") -> Iterator[RefusedStatement]:
    """Yield the statements in files, and in all files of folders, that a watch of these tables would refuse.

    Python: every text in it, also with fields.  `.sql`: each statement.  Other files are logs: each line, from its
    first word of SQL on.  What SQLAlchemy makes of `update(Product)` is in logs alone, beside what flushes write.
    """
    statements = Statements(changed=tables)
    for path in paths:
        files = sorted(each for each in path.rglob("*") if each.suffix in (".py", ".sql")) if path.is_dir() else [path]
        for file in files:
            text = file.read_text(errors="replace")
            for line, statement in _texts(file, text):
                found = statements.changes(statement, dialect)
                if found:
                    shown = " ".join(statement.split())[:_LONGEST_SHOWN]
                    yield RefusedStatement(f"{file}:{line}", tuple(sorted(found)), shown)


def _texts(file: Path, text: str) -> Iterator[tuple[int, str]]:
    if file.suffix == ".py":
        try:
            yield from _literals(ast.parse(text))
        except (SyntaxError, ValueError):
            return
    elif file.suffix == ".sql":
        line = 1
        for statement in re.split(r"(?<=;)[ \t]*\n", text):
            begin = len(statement) - len(statement.lstrip())
            yield line + statement[:begin].count("\n"), statement.strip()
            line += statement.count("\n") + 1
    else:
        for line, each in enumerate(text.splitlines(), 1):
            match = _BEGINS.search(each)
            if match is not None:
                yield line, each[match.start() :]


def _literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    # Docstrings are prose.
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = (str(each.value) if isinstance(each, ast.Constant) else "x" for each in node.values)
            text = "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        # Other texts speak of updates as well: a statement begins with its verb.
        if _BEGINS.match(text.lstrip(" \t\r\n(-")):
            yield node.lineno, text
