"""The directive of Mermaid fences: on GitHub its script draws them, here `drawing` does."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from drawing import DiagramError, parse, svg
from sphinx.util.docutils import SphinxDirective


class Mermaid(SphinxDirective):
    """A Mermaid fence, drawn."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture's node."""
        try:
            picture = svg(parse("\n".join(self.content)))
        except DiagramError as error:
            raise self.error(str(error)) from None
        return [nodes.raw("", picture, format="html")]


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True}
