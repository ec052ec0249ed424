"""Mutants made by machine: flows, Lua scripts and connections with one operator, condition or statement changed.

`python tests/heavy/mutants.py map FILE` notes which tests call which functions; `... run FILE [FROM TO [EACH]]` tries
the sample, each mutant in a copy of the tree with the tests that call its function, and prints what became of it: a
result a line, and on stderr how far it has got.
"""

from __future__ import annotations

import ast
import builtins
import copy
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LUA = "cacheworkers/store/commands/lua"
#: What sends the scripts.
SENDERS = tuple(f"cacheworkers/store/commands/{name}.py" for name in ("store", "leases", "access_scores", "garbage"))
#: Folder, files in it, and how many of the sample's mutants are of these.
PARTS = (("cacheworkers/flows", "*.py", 100), (LUA, "*.lua", 50), ("cacheworkers/store/connections", "*.py", 50))
#: Not mutated: declarations of what others implement.
LEFT_OUT = ("cacheworkers/flows/ports.py",)
#: The tests that are to kill them.
TESTS = (
    "tests/flows",
    "tests/integration/test_cli.py",
    "tests/sql/test_inspect.py",
    "tests/sql/test_watch.py",
    "tests/sql/test_watch_reads.py",
    "tests/integration/test_connections.py",
    "tests/integration/test_cluster.py",
    "tests/integration/test_credentials.py",
    "tests/integration/test_forks.py",
    "tests/integration/test_outages.py",
    "tests/integration/test_topologies.py",
    "tests/unit/test_address.py",
    "tests/unit/test_async_connection.py",
    "tests/unit/test_detached_sets.py",
    "tests/unit/test_fan_out.py",
    "tests/unit/test_health.py",
    "tests/unit/test_redirections.py",
    "tests/unit/test_sentinels.py",
    "tests/unit/test_silent_masters.py",
    "tests/unit/test_stats.py",
)
#: Imported once, before the runs are forked.
HEAVY = ("_pytest.python", "celery", "hypothesis", "msgspec", "pydantic", "redis.asyncio", "sqlalchemy.orm")
#: Seconds of tests, as the map has them, that one mutant may cost; and in all, with servers' starts, on a busy machine.
TESTS_FOR = 30.0
ENDS_AFTER = 120.0
#: Seconds without the end of a test after which a mutant counts as hanging, which kills it.
HANGS_AFTER = 30.0
#: Seconds for one file of tests when the map is made, and how many processes work beside each other.
FILE_FOR = 300.0
PROCESSES = 2

Tests = dict[str, tuple[float, list[str]]]
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd,
}
#: A line of Lua, and what becomes of it.
IN_LUA = (
    (r"==", "~="),
    (r"~=", "=="),
    (r"<=", "<"),
    (r">=", ">"),
    (r"(?<![<=])<(?!=)", "<="),
    (r"(?<![>=])>(?!=)", ">="),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"\bnot\b ", ""),
    (r"\+", "-"),
    (r"\bmath\.max\b", "math.min"),
    (r"(?<!\[)\b0\b", "1"),
    (r"(?<!\[)\b1\b", "0"),
    (r"^\s*(redis\.call|if .* then redis\.call).*$", ""),
)


class Mutant(NamedTuple):
    """A file with one part changed.

    Attributes:
        place: the function, or the script.
        line: the function's first line; 0 for scripts.
        changes: what was there, and what is there instead.
    """

    file: str
    place: str
    line: int
    changes: str
    text: str

    @property
    def name(self) -> str:
        """What it is called where survivors are explained: no line number, for these change."""
        return f"{self.file} {self.place}: {self.changes}"


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Yield all mutants of a file."""
    name, text = str(file.relative_to(ROOT)), file.read_text()
    yield from _of_lua(name, text) if file.suffix == ".lua" else _of_python(name, text)


def _of_lua(name: str, text: str) -> Iterator[Mutant]:
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.lstrip().startswith(("--", "#!")):
            continue
        for pattern, new in IN_LUA:
            for found in re.finditer(pattern, line):
                changed = line[: found.start()] + new + line[found.end() :]
                whole = "\n".join([*lines[:at], changed, *lines[at + 1 :], ""])
                yield Mutant(name, Path(name).stem, 0, f"{line.strip()} -> {changed.strip() or 'nothing'}", whole)


def _of_python(name: str, text: str) -> Iterator[Mutant]:
    tree = ast.parse(text)
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for place, function in _functions(tree):
        first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
        for node in _inside(function):
            for changed in _changed(node):
                if isinstance(changed, ast.Pass) and function.name == "__init__":
                    continue  # any test at all would miss it
                begin = starts[node.lineno - 1] + node.col_offset
                end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
                old = text.encode()[begin:end].decode()
                new = ast.unparse(changed)
                if isinstance(node, ast.expr) and not isinstance(changed, ast.Constant | ast.Name):
                    new = f"({new})"
                whole = text.encode()[:begin].decode() + new + text.encode()[end:].decode()
                yield Mutant(name, place, first, " ".join(f"{old} -> {new}".split()), whole)


def _functions(
    tree: ast.Module | ast.ClassDef, within: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__repr__":
            yield within + node.name, node


def _inside(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr | ast.stmt]:
    """Yield what is executed of a function: no annotations, no docstrings, no text of f-strings."""
    queue: list[ast.AST] = list(function.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.expr | ast.stmt):
            yield node
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            continue  # texts, and what is there for those who read
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns"):
                continue
            queue += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST)]


def _changed(node: ast.expr | ast.stmt) -> Iterator[ast.AST]:
    made: Any = copy.deepcopy(node)
    match made:
        case ast.Compare(ops=[one]) if type(one) in COMPARED:
            made.ops = [COMPARED[type(one)]()]
            yield made
        case ast.BoolOp():
            made.op = ast.Or() if isinstance(made.op, ast.And) else ast.And()
            yield made
        case ast.UnaryOp(op=ast.Not()):
            yield made.operand
        case ast.BinOp() if type(made.op) in COMPUTED and not isinstance(made.left, ast.Constant | ast.JoinedStr):
            made.op = COMPUTED[type(made.op)]()
            yield made
        case ast.Constant(value=bool()):
            yield ast.Constant(not made.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(made.value + 1)
        case ast.IfExp():
            yield made.body
            yield made.orelse
        case ast.Name(id="min" | "max"):
            yield ast.Name("max" if made.id == "min" else "min")
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Expr(value=ast.Yield() | ast.YieldFrom()):
            made.value = ast.YieldFrom(ast.Tuple([], ast.Load()))  # still a generator
            yield made
        case ast.Expr() | ast.Raise() | ast.Delete() | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if not isinstance(made.value, ast.Yield):
            yield ast.Pass()


def sample() -> list[Mutant]:
    """Return the mutants that are tried: always the same ones of the same code, spread over it."""
    chosen: list[Mutant] = []
    for folder, pattern, wanted in PARTS:
        files = [file for file in sorted((ROOT / folder).glob(pattern)) if str(file.relative_to(ROOT)) not in LEFT_OUT]
        found = {mutant.name: mutant for file in files for mutant in mutants_of(file)}
        chosen += sorted(found.values(), key=lambda each: hashlib.sha1(each.name.encode()).digest())[:wanted]
    return chosen


class Noting:
    """A plugin of pytest: notes which functions each test calls, and how long it takes; of those that pass."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._tests: Tests = {}
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        called: set[str] = builtins.called_functions  # type: ignore[attr-defined]
        called.clear()
        began = time.monotonic()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            if item.nodeid not in self._failed:
                self._tests[item.nodeid] = (time.monotonic() - began, sorted(called))
                self._into.write_text(json.dumps(self._tests))


def note_tests(into: Path) -> None:
    """Write which tests call which functions: run in copies of the tree whose functions say that they are called."""
    files = [str(file.relative_to(ROOT)) for each in TESTS for file in _test_files(ROOT / each)]
    found: Tests = {}
    for count, tests in enumerate(_in_parallel(_noted, files, _note_calls), 1):
        found |= tests
        print(f"\r{count} of {len(files)} files, {len(found)} tests", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    into.write_text(json.dumps(found))


def _test_files(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def _note_calls(tree: Path) -> None:
    mutated = [file for folder, pattern, _ in PARTS for file in (tree / folder).glob(pattern)]
    for file in [*mutated, *map(tree.joinpath, SENDERS)]:
        if file.suffix == ".py":
            file.write_text(_noting(str(file.relative_to(tree)), file.read_text()))


def _noted(file: str) -> Tests:
    noted = _tree / "noted.json"
    noted.unlink(missing_ok=True)

    def note() -> int:
        builtins.called_functions = set()  # type: ignore[attr-defined]
        return int(pytest.main(["-q", "-p", "no:cacheprovider", file], plugins=[Noting(noted)]))

    _outcome(note, FILE_FOR, FILE_FOR)
    return json.loads(noted.read_text()) if noted.exists() else {}


def _noting(name: str, text: str) -> str:
    lines = text.splitlines(keepends=True)
    for _, function in sorted(_functions(ast.parse(text)), key=lambda each: -each[1].lineno):
        body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
        if body and body[0].lineno > function.lineno:
            first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
            note = f'called_functions.add("{name}:{first}")\n'
            lines.insert(body[0].lineno - 1, " " * body[0].col_offset + note)
    return "".join(lines)


def tests_of(mutant: Mutant, tests: Tests) -> list[str]:
    """Return the tests to run, of those that call the mutated function: of each its quickest case, then the next."""
    if mutant.file.startswith(LUA):
        called = _callers(mutant.place)
    else:
        called = {f"{mutant.file}:{mutant.line}"}
    found = sorted((took, test) for test, (took, functions) in tests.items() if called & set(functions))
    cases: Counter[str] = Counter()
    ordered = []
    for took, test in found:
        name = test.partition("[")[0]
        cases[name] += 1
        ordered.append((cases[name], took, test))
    chosen, total = [], 0.0
    for _, took, test in sorted(ordered):
        total += took
        if chosen and total > TESTS_FOR:
            break
        chosen.append(test)
    # Servers and workers of a file are started once for all of its tests.
    files = list(dict.fromkeys(test.partition("::")[0] for test in chosen))
    return sorted(chosen, key=lambda test: files.index(test.partition("::")[0]))


def _callers(script: str) -> set[str]:
    """Return the methods of the store that send a script."""
    word = f"scripts.{script.upper()}"
    return {
        f"{file}:{function.lineno}"
        for file in SENDERS
        for _, function in _functions(ast.parse((ROOT / file).read_text()))
        if re.search(rf"\b{re.escape(word)}\b", ast.unparse(function))
    }


def outcome_of(mutant: Mutant, chosen: Sequence[str]) -> str:
    """Run tests on a mutant in this process's tree: "killed by ...", "hangs", "survived", or "untested" for none."""
    if not chosen:
        return "untested"
    file, output = _tree / mutant.file, _tree / "output.txt"
    original = file.read_text()
    file.write_text(mutant.text)
    for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        cached.unlink()
    try:
        code = _outcome(lambda: int(pytest.main(["-x", "-q", "--tb=line", "-p", "no:cacheprovider", *chosen])))
    finally:
        file.write_text(original)
    if code is None:
        return "hangs"
    by = re.search(r"^(?:FAILED|ERROR) (\S+)", output.read_text(errors="replace"), re.MULTILINE)
    return f"killed by {by[1] if by else f'exit status {code}'}" if code else "survived"


def _outcome(run: Callable[[], int], ends_after: float = ENDS_AFTER, hangs_after: float = HANGS_AFTER) -> int | None:
    """Run in a child in this process's tree and return its exit status: 0 at its end; None if it hangs before that."""
    output = _tree / "output.txt"
    output.write_text("")
    child = os.fork()
    if not child:
        _run_in_child(run)
    try:
        until = time.monotonic() + ends_after
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.time() - output.stat().st_mtime > hangs_after:
                return None
            time.sleep(0.05)
        return 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _run_in_child(run: Callable[[], int]) -> None:
    os.setsid()
    os.chdir(_tree)
    sys.path[:0] = [str(_tree), str(_tree / "tests" / "flows"), str(_tree / "tests")]
    with open(_tree / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        code = 99
        try:
            code = run()
        finally:
            sys.stdout.flush()
            os._exit(code)


#: This process's copy of the code and its tests, to be changed.
_tree: Path


def _begin(trees: str, change: Callable[[Path], None] | None) -> None:
    """Make this process's tree; what is imported here need not be imported again for each mutant."""
    global _tree
    _tree = Path(tempfile.mkdtemp(dir=trees))
    for folder in ("cacheworkers", "tests", "app", "benchmarks", "docs"):
        shutil.copytree(ROOT / folder, _tree / folder)
    shutil.copy(ROOT / "pyproject.toml", _tree)
    if change:
        change(_tree)
    for name in HEAVY:
        importlib.import_module(name)


def _in_parallel(work: Callable[[Any], Any], given: Sequence[Any], change: Any = None) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as trees:
        begin = (str(Path(trees).resolve()), change)
        with multiprocessing.get_context("fork").Pool(PROCESSES, _begin, begin) as pool:
            yield from pool.imap_unordered(work, given)


def run(mutants: Sequence[Mutant], tests: Tests) -> Iterator[tuple[Mutant, str]]:
    """Try mutants, as many at a time as there are processes, each in a fork and a copy of the tree."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for mutant, outcome in _in_parallel(_tried, [(mutant, tests_of(mutant, tests)) for mutant in mutants]):
        counts[outcome.split()[0]] += 1
        found = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        line = f"{counts.total()} of {len(mutants)} in {time.monotonic() - began:.0f} s: {found}"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
        yield mutant, outcome
    print(file=sys.stderr)


def _tried(given: tuple[Mutant, list[str]]) -> tuple[Mutant, str]:
    mutant, chosen = given
    return mutant, outcome_of(mutant, chosen)


def main(words: Sequence[str]) -> None:
    """Make the map, or try a slice of the sample."""
    file = Path(words[1])
    if words[0] == "map":
        note_tests(file)
        return
    part = slice(*(int(word) for word in words[2:5])) if len(words) > 2 else slice(None)
    for mutant, outcome in run(sample()[part], json.loads(file.read_text())):
        print(f"{outcome}\t{mutant.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
