"""What a reader of the code has before him: `python -m benchmarks.house`.

Lines of code by room, without blank lines, comments and docstrings; and through how many of the package's files and
functions five reads go in their own thread, each function counted once.
"""

from __future__ import annotations

import ast
import collections
import io
import sys
import time
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import cacheworkers
from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey

PACKAGE = Path(cacheworkers.__file__).parent
_SPACING = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Return how many lines of a module are code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _SPACING:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def rooms() -> Iterator[tuple[str, int, int]]:
    """Yield each room's name, files and lines of code."""
    files, lines = collections.Counter[str](), collections.Counter[str]()
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).parts
        room = inside[0] if len(inside) > 1 else "root"
        files[room] += 1
        lines[room] += code_lines(path.read_text())
    for room in sorted(files):
        yield room, files[room], lines[room]


class Walk:
    """Which functions of the package are entered while it is on."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], None] | None = None

    def of(self, work: Callable[[], Any]) -> tuple[list[str], int]:
        """Return the files that some work goes through, in its order, and the number of functions."""
        self._found = {}
        sys.setprofile(self._note)
        try:
            work()
        finally:
            sys.setprofile(None)
        found, self._found = self._found, None
        return list(dict.fromkeys(file for file, _ in found)), len(found)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if self._found is None or event != "call" or not file.is_relative_to(PACKAGE):
            return
        self._found[file.relative_to(PACKAGE).as_posix(), frame.f_code.co_qualname] = None


def walks() -> Iterator[tuple[str, list[str], int]]:
    """Yield each read, the files that it goes through, and the number of functions."""
    walk = Walk()
    with Valkey() as valkey:
        config = Config(redis_url=valkey.url, namespace="walk", store_timeout=5.0)
        cache, other = Cache(config), Cache(config)

        def declared(where: Cache) -> Any:
            @where.loader(fresh_for=300, tags=("number:{number}",))
            def number(load: Load, number: int) -> int:
                return number

            return number

        mine, others = declared(cache), declared(other)
        mine.get(1)
        for number in (2, 10, 11, 12):
            others.get(number)
        end = time.monotonic() + 30.0
        while mine.read(1).tier != "l1" and time.monotonic() < end:
            time.sleep(0.01)
        reads: dict[str, Callable[[], Any]] = {
            "a hit in L1": lambda: mine.get(1),
            "a hit in the store": lambda: mine.get(2),
            "a miss": lambda: mine.get(99),
            "a hard invalidation": lambda: cache.invalidate("number:1"),
            "`get_many` of three in the store": lambda: mine.get_many([10, 11, 12]),
        }
        for what, read in reads.items():
            files, functions = walk.of(read)
            yield what, files, functions
        cache.close()
        other.close()


def main() -> None:
    """Print both tables."""
    print("| room | files | lines of code |\n|---|---:|---:|")
    counted = list(rooms())
    for room, files, lines in counted:
        print(f"| {room} | {files} | {lines:,} |")
    print(f"| all | {sum(each for _, each, _ in counted)} | {sum(each for _, _, each in counted):,} |\n")
    print("| read | files | functions | through |\n|---|---:|---:|---|")
    for what, through, functions in walks():
        print(f"| {what} | {len(through)} | {functions} | {', '.join(f'`{each}`' for each in through)} |")


if __name__ == "__main__":
    main()
