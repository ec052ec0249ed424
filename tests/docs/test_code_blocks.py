"""Every code block of the README and the documentation does what the page says."""

from __future__ import annotations

import ast
import contextlib
import re
import textwrap
from pathlib import Path

import pytest

from cacheworkers.testing import Postgres

from . import prelude, shell
from .blocks import ROOT, Block, blocks_of, commands_within, pages
from .page_run import run_page
from .running import Page
from .test_tutorials import TUTORIALS


@pytest.mark.parametrize("page", sorted(set(pages()) - set(TUTORIALS)))
def test_every_block_works(page: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, postgres, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", pages())
def test_every_command_in_a_text_exists(page: str) -> None:
    """A figure names the command that repeats it, and a sentence the one to type."""
    for command in commands_within(page):
        with contextlib.suppress(shell.Incomplete):  # a sentence may name a command without its arguments
            shell.check(command, set())


@pytest.mark.parametrize("page", pages())
def test_what_a_page_uses_it_makes_or_names(page: str) -> None:
    """A reader who pastes its blocks knows which names are those of a project: the page has each in its text."""
    text = re.sub(r"^(```+).*?^\1", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)

    taken = set() if page in prelude.SELF_CONTAINED else _taken_for_granted(blocks_of(page))

    assert not [name for name in sorted(taken) if f"`{name}`" not in text]


LAYOUT = "docs/how-to/project-layout.md"
_FROM_THE_LAYOUT = re.compile(r"[^.;:]*\bas\s+in\s+the\s+\[layout\]")


def _layout() -> list[ast.stmt]:
    """Return the statements of the layout's files."""
    files = [block.text for block in blocks_of(LAYOUT) if block.mark == "file"]
    return [statement for text in files for statement in ast.parse(text).body]


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith(prelude.DECLARING)])
def test_what_is_pasted_into_a_file_has_its_imports(page: str) -> None:
    """A page's names are found in the test by any means; a reader's file has those alone that it imports or makes."""
    assert not _taken_for_granted(blocks_of(page))


@pytest.mark.parametrize("page", pages())
def test_what_is_imported_from_the_layout_is_there(page: str) -> None:
    """In the test each module of the layout has all names; a reader's has those that the layout puts into it."""
    blocks = [block for block in blocks_of(page) if (block.language, block.mark) == ("python", "")]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(textwrap.dedent(block.text)))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("shop.")]
    own = {name for block in blocks for name in _made_by(block.text)}
    modules = {f"shop.{Path(block.says).stem}": block.text for block in reversed(blocks_of(LAYOUT)) if block.says}

    for node in imports:
        there = _made_by(modules[str(node.module)]) | (own if node.module in ("shop.catalog", "shop.web") else set())
        assert {alias.name for alias in node.names} <= there, (node.module, there)


def _made_by(text: str) -> set[str]:
    """Return the names that a module's statements make."""
    body = ast.parse(textwrap.dedent(text)).body
    made = {getattr(statement, "name", "") for statement in body}
    return made | {ast.unparse(target) for each in body if isinstance(each, ast.Assign) for target in each.targets}


@pytest.mark.parametrize("page", pages())
def test_what_is_said_to_be_the_layouts_is_there(page: str) -> None:
    """The layout is the one project of all how-to pages: no page gives its names a second spelling."""
    text = re.sub(r"\s+", " ", (ROOT / page).read_text())
    said = {name for sentence in _FROM_THE_LAYOUT.findall(text) for name in re.findall(r"`(\w+)`", sentence)}

    assert said <= {name for block in blocks_of(LAYOUT) if block.mark == "file" for name in _made_by(block.text)}


def test_the_layouts_models_and_rows_are_those_that_pages_run_on() -> None:
    """Each page is tested on the prelude's columns and rows: a reader gets the same by the layout."""
    classes = {each.name: each for each in _layout() if isinstance(each, ast.ClassDef)}
    columns = {
        name: [ast.unparse(field.target) for field in classes[name].body if isinstance(field, ast.AnnAssign)]
        for name in ("Product", "ProductView")
    }

    assert columns["Product"] == list(prelude.Product.__table__.columns.keys())
    assert columns["ProductView"] == list(prelude.ProductView.__struct_fields__)
    assert prelude.ROWS in re.sub(r"\s+", " ", (ROOT / LAYOUT).read_text())


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith(prelude.DECLARING)])
def test_a_page_with_a_cache_of_its_own_says_which_file_that_replaces(page: str) -> None:
    """One Celery app has one cache: who keeps the layout's beside the page's gets an error."""
    text = (ROOT / page).read_text()

    assert "[layout]" not in text or "in place of `shop/cache.py`" in text


@pytest.mark.parametrize("page", pages())
def test_a_handler_that_writes_answers_an_unknown_id(page: str) -> None:
    """`get_one` raises in it, which is a 500."""
    blocks = [block for block in blocks_of(page) if block.language == "python"]
    functions = [node for block in blocks for node in ast.walk(ast.parse(textwrap.dedent(block.text)))]
    handlers = [ast.unparse(each) for each in functions if getattr(each, "decorator_list", None)]

    assert not [each for each in handlers if ".put(" in each.partition("def ")[0] and "get_one" in each]


def _taken_for_granted(blocks: list[Block]) -> set[str]:
    """Return the names of the scene that a page's Python uses before it makes them itself."""
    made: set[str] = set()
    taken: set[str] = set()
    for block in blocks:
        if (block.language, block.mark) == ("python", ""):
            nodes = list(ast.walk(ast.parse(textwrap.dedent(block.text))))
            made |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
            made |= {node.name for node in nodes if isinstance(node, ast.alias)}
            made |= {
                node.name for node in nodes if isinstance(node, ast.AsyncFunctionDef | ast.ClassDef | ast.FunctionDef)
            }
            taken |= {node.id for node in nodes if isinstance(node, ast.Name)} & prelude.PROJECT - made
    return taken


BAD = {
    "raises": Block("page.md", 1, "python", "1 / 0"),
    "no file of a project has it": Block("page.md", 1, "python", "import asyncio\n\nawait asyncio.sleep(0)"),
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
    """A later block sees what an earlier one has made, and its output is compared."""
    text = "```python\nx = 41\n```\n\n```python\nprint(x + 1)\n```\n"
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
