"""Every page can be reached, has a title and no dead links: most of what `make docs` would refuse, in no time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from .blocks import ROOT, pages

DOCS = ROOT / "docs"
PARSER = MarkdownIt().enable("table")


def tokens_of(path: Path) -> list[Token]:
    return PARSER.parse(path.read_text())


def links_of(path: Path) -> Iterator[str]:
    """Yield where a page's links and pictures lead."""
    for token in tokens_of(path):
        for child in token.children or []:
            target = child.attrs.get("href" if child.type == "link_open" else "src")
            if child.type in ("link_open", "image") and target is not None:
                yield str(target)


def headings_of(path: Path) -> list[tuple[str, str]]:
    """Return tag and text of each heading."""
    tokens = tokens_of(path)
    return [
        (token.tag, "".join(child.content for child in inline.children or []))
        for token, inline in pairwise(tokens)
        if token.type == "heading_open"
    ]


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings_of(path)}


@pytest.mark.parametrize("page", [*pages(), "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    """To a file, and to one of its headings if they name one."""
    path = ROOT / page
    broken = []
    for link in links_of(path):
        where = urlsplit(link)
        if where.scheme:
            continue
        target = path if not where.path else (path.parent / where.path).resolve()
        if not target.exists() or (where.fragment and where.fragment not in anchors_of(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", pages())
def test_pages_have_one_title_and_come_first_with_it(page: str) -> None:
    """But for the start, which is the README."""
    titles = [text for tag, text in headings_of(ROOT / page) if tag == "h1"]

    assert len(titles) == (page != "docs/index.md")
    assert tokens_of(ROOT / page)[0].tag == "h1" or page == "docs/index.md"


def test_every_page_is_in_a_list_of_contents() -> None:
    """Each folder has an index that takes all that is in it, and the first page takes each index."""
    folders = {path.parent for path in (ROOT / page for page in pages()) if path.parent != ROOT}
    first = (DOCS / "index.md").read_text()

    for folder in folders:
        contents = (folder / "index.md").read_text()
        assert re.search(r"```\{toctree\}\n[^`]*:glob:\n[^`]*^\*$", contents, re.MULTILINE), folder
        assert folder == DOCS or f"\n{folder.name}/index\n" in first
