"""The code blocks of a page: where they stand, what language they are in, and what a comment before them says.

A comment right before a block, invisible on the page, says how it is tested:

    <!-- file: shop.py -->         the block is this file, for the commands that follow
    <!-- stays: regular expr. -->  the last command goes on; it is up when it has printed this
    <!-- terminals: regular expr. -->  each command has a terminal: it ends well, or goes on and has printed this
    <!-- status: 1 -->             the last command ends with this status
    <!-- adds: shop.py -->         the block is added to the end of this file
    <!-- prints -->                the block is what the Python block or the commands before it print, but for times
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
_COMMENT = re.compile(r"<!--\s*(file|adds|stays|terminals|status|prints)(?::\s*(.*?))?\s*-->\s*")
_COMMAND = re.compile(r"(make|python -m|cacheworkers|celery|docker compose|pip install) \S")
_FENCE = re.compile(r"^\s*(```+|~~~+|:::+)(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the page's path below the root.
        line: of its opening fence, from 1.
        language: the fence's first word.
        text: what is in it.
        mark, says: the comment before it, and what follows its colon.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    says: str = ""

    @property
    def place(self) -> str:
        """Where it is: `docs/how-to/warm.md:12`."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return every page: the README, and all of `docs/`."""
    found = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts
    )
    return ["README.md", *found]


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """Return a page's blocks in order.

    Raises:
        AssertionError: a block is indented instead of fenced, or a fence was not understood: it would be untested.
    """
    text = (ROOT / page).read_text() if text is None else text
    found: list[Block] = []
    mark, says = "", ""
    for token in MarkdownIt().parse(text):
        if token.type == "code_block":
            assert token.map is not None
            raise AssertionError(f"{page}:{token.map[0] + 1}: a block must be fenced and have a language")
        if token.type == "html_block":
            match = _COMMENT.fullmatch(token.content)
            mark, says = (match[1], match[2] or "") if match else ("", "")
        elif token.type == "fence":
            assert token.map is not None
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(Block(page, token.map[0] + 1, language, token.content, mark, says))
            mark, says = "", ""
        elif token.type != "paragraph_close":
            assert not mark, f"{page}: the comment {mark!r} must stand right before a block"
    _assert_none_missed(page, text, found)
    return found


def commands_within(page: str) -> list[str]:
    """Return the commands that a page names in its text and tables: `make demo`."""
    tokens = [token for token in MarkdownIt().enable("table").parse((ROOT / page).read_text()) if token.children]
    spans = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    return [span for span in spans if _COMMAND.match(span)]


def _assert_none_missed(page: str, text: str, found: list[Block]) -> None:
    """Count the fences in the plain text again, by another way."""
    opened, fence = 0, ""
    for mark, rest in _FENCE.findall(text):
        if not fence:
            fence, opened = mark, opened + 1
        elif mark[0] == fence[0] and len(mark) >= len(fence) and not rest.strip():
            fence = ""
    assert opened == len(found), f"{page}: {opened} fences, {len(found)} blocks found"
