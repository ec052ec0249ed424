"""A directive that puts a table made from the code into a page: `{generated} settings`."""

from __future__ import annotations

from typing import Any

import tables
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """Renders one of `tables.TABLES`, which is Markdown, where it stands."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table's nodes."""
        make = tables.TABLES.get(self.arguments[0])
        if make is None:
            raise self.error(f"generated must be one of {', '.join(tables.TABLES)}, got {self.arguments[0]!r}")
        return self.parse_text_to_nodes(make(), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
