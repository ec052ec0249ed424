"""Every code block of the README and the documentation does what the page says."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest

from cacheworkers.testing import Postgres, Valkey

from . import prelude, shell
from .blocks import Block, blocks_of, commands_within, pages
from .running import Page

_names = itertools.count(1)
OUTCOMES = {"run", "compiled", "written", "checked", "executed", "printed", "shown", "parsed", "drawn", "directive"}


@pytest.mark.parametrize("page", pages())
def test_every_block_works(page: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order, in one namespace, on a store and a database of the page's own; none is left out."""
    blocks = [*prelude.SCENES.get(page, ()), *blocks_of(page)]
    is_session = any(block.mark == "file" for block in blocks)
    monkeypatch.chdir(tmp_path)

    is_run = any((block.language, block.mark) == ("python", "") for block in blocks)

    with contextlib.ExitStack() as servers:
        monkeypatch.setenv("CACHEWORKERS_STORE_TIMEOUT", "5")
        starts_servers = any(block.says == "servers.py" for block in blocks)
        if (is_run or is_session) and not starts_servers:  # it takes both from the environment
            monkeypatch.setenv("REDIS_URL", servers.enter_context(Valkey()).url)
            monkeypatch.setenv("DATABASE_URL", postgres.create_database(f"docs{next(_names)}"))
        names = prelude.of(page) if is_run else {}
        with Page(page, tmp_path, names, is_session=is_session) as running:
            done = [running.run_loads(block) for block in blocks]

    assert len(done) == len(blocks)
    assert set(done) <= OUTCOMES


@pytest.mark.parametrize("page", pages())
def test_every_command_in_a_text_exists(page: str) -> None:
    """A figure names the command that repeats it, and a sentence the one to type."""
    for command in commands_within(page):
        with contextlib.suppress(shell.Incomplete):  # a sentence may name a command without its arguments
            shell.check(command, set())


BAD = {
    "raises": Block("page.md", 1, "python", "1 / 0"),
    "an unknown name": Block("page.md", 1, "python", "nobody_knows"),
    "a signature that does not compile": Block("page.md", 1, "pyi", "def f(:"),
    "no such command": Block("page.md", 1, "bash", "cacheworkers -A shop:cache explode"),
    "no such option": Block("page.md", 1, "bash", "cacheworkers -A shop:cache explain --nicely 'product[42]'"),
    "an argument is missing": Block("page.md", 1, "bash", "cacheworkers -A shop:cache explain"),
    "no such target": Block("page.md", 1, "bash", "make money"),
    "no such module": Block("page.md", 1, "bash", "python -m benchmarks.nothing"),
    "a program that nobody checks": Block("page.md", 1, "bash", "rm -rf ."),
    "another status": Block("page.md", 1, "bash", "python -c 'exit(2)'", "status", "1"),
    "another output": Block("page.md", 1, "text", "something else", "prints"),
    "no language": Block("page.md", 1, "", "x = 1"),
    "an unknown language": Block("page.md", 1, "cobol", "STOP RUN."),
    "a diagram that cannot be drawn": Block("page.md", 1, "mermaid", "sequenceDiagram\n a->>b: hello"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_block_that_does_not_work_is_found(case: str, tmp_path: Path) -> None:
    """A check that stopped looking would find nothing here."""
    with (
        Page("page.md", tmp_path, {}, is_session=BAD[case].mark == "status") as page,
        pytest.raises((AssertionError, ArithmeticError, NameError, SyntaxError, ValueError)),
    ):
        page.run_loads(BAD[case])


def test_blocks_of_a_page_share_names_and_prints(tmp_path: Path) -> None:
    """A later block sees what an earlier one has made, awaits included, and its output is compared."""
    text = "```python\nx = 41\n```\n\n```python\nimport asyncio\n\nawait asyncio.sleep(0)\nprint(x + 1)\n```\n"
    blocks = blocks_of("page.md", f"{text}\n<!-- prints -->\n```text\n42\n```\n")

    with Page("page.md", tmp_path, {}, is_session=False) as page:
        done = [page.run_loads(block) for block in blocks]

    assert done == ["run", "run", "printed"]


@pytest.mark.parametrize(
    "text",
    ["text\n\n    indented = 1\n", "<!-- prints -->\n\ntext\n\n```python\n1\n```\n", "<!-- prints -->\n\n# A\n"],
)
def test_what_would_be_left_out_is_an_error(text: str) -> None:
    """A block without a fence has no language, and a mark without a block marks nothing."""
    with pytest.raises(AssertionError):
        blocks_of("page.md", text)
