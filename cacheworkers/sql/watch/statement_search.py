"""Statement search: which SQL texts in a code base or a log a watch would refuse, before it is switched on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Table

from cacheworkers.sql.sqlalchemy_internals import all_mappers
from cacheworkers.sql.watch.statements import Statements

_BEGINS = re.compile(
    r"\b(?:with|explain|insert|replace|merge|copy|update|delete|truncate|load|rename|do|call)\b", re.IGNORECASE
)
_LONGEST_SHOWN = 200
#: Functions of SQLAlchemy and sessions whose first argument is what they change; and methods of tables and queries.
_CALLS = frozenset(("insert", "update", "delete", "bulk_insert_mappings", "bulk_update_mappings"))
_METHODS = frozenset(("insert", "update", "delete"))


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


def refused_statements(
    paths: Iterable[Path], tables: Iterable[str], dialect: str = "", classes: Mapping[str, str] | None = None
) -> Iterator[RefusedStatement]:
    """Yield the statements in files, and in all files of folders, that a watch of these tables would refuse.

    Python: every text in it, also with fields, and calls such as `update(Product)`, of which those that change one row
    by its key will run.  `.sql`: each statement.  Other files are logs: each line, from its first word of SQL on.

    Args:
        classes: name of a mapped class -> its table, beside those that the files themselves define.
    """
    tables = set(tables)
    statements = Statements(changed=tables)
    contents = {file: file.read_text(errors="replace") for path in paths for file in _files(path)}
    trees = {
        file: tree for file, text in contents.items() if file.suffix == ".py" and (tree := _tree(text)) is not None
    }
    named = dict(classes or {})
    for tree in trees.values():
        named.update(_named_tables(tree))
    for file, text in contents.items():
        if file in trees:
            for line, table, shown in _calls(
                trees[file], {name: each for name, each in named.items() if each in tables}
            ):
                yield RefusedStatement(f"{file}:{line}", (table,), shown[:_LONGEST_SHOWN])
        for line, statement in _texts(file, text, trees.get(file)):
            found = statements.changes(statement, dialect)
            if found:
                shown = " ".join(statement.split())[:_LONGEST_SHOWN]
                yield RefusedStatement(f"{file}:{line}", tuple(sorted(found)), shown)


def mapped_tables() -> dict[str, str]:
    """Return the tables of the classes that are mapped in this process, by name."""
    return {
        mapper.class_.__name__: mapper.local_table.name
        for mapper in all_mappers()
        if isinstance(mapper.local_table, Table)
    }


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.suffix in (".py", ".sql")) if path.is_dir() else [path]


def _tree(text: str) -> ast.AST | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _named_tables(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names of classes with a `__tablename__`, and of variables that are a `Table`, with their tables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                match each:
                    case (
                        ast.Assign(targets=[ast.Name(id="__tablename__")], value=ast.Constant(value=str(table)))
                        | ast.AnnAssign(target=ast.Name(id="__tablename__"), value=ast.Constant(value=str(table)))
                    ):
                        yield node.name, table
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _last(node.value.func) == "Table":
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[ast.Constant(value=str(table)), *_])):
                    yield name, table


def _calls(tree: ast.AST, tables: Mapping[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield the calls that change tables outside the unit of work: line, table and text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        verb, found = _last(node.func), ""
        if verb in _CALLS and node.args:
            found = _last(node.args[0], skips="__table__")
        if not found and verb in _METHODS and isinstance(node.func, ast.Attribute):
            found = _last(node.func.value, skips="__table__") or _queried(node.func.value)
        if found in tables:
            yield node.lineno, tables[found], ast.unparse(node)


def _queried(node: ast.AST) -> str:
    """Return what a chain of calls after `query(...)` is about."""
    while isinstance(node, ast.Call | ast.Attribute):
        if isinstance(node, ast.Call) and _last(node.func) == "query" and node.args:
            return _last(node.args[0])
        node = node.func if isinstance(node, ast.Call) else node.value
    return ""


def _last(node: ast.AST, skips: str = "") -> str:
    """Return the last name of a dotted one: `models.Product` is `Product`."""
    if isinstance(node, ast.Attribute):
        return _last(node.value) if node.attr == skips else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _texts(file: Path, text: str, tree: ast.AST | None) -> Iterator[tuple[int, str]]:
    if file.suffix == ".py":
        if tree is not None:
            yield from _literals(tree)
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
