"""Mermaid sequence diagrams as SVG: drawn when the site is built, so that a page needs no script and has its theme.

Of Mermaid's language it takes `participant`, `->>` and `-->>` messages, `Note over`; anything else is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

#: Pixels: between two participants, of a participant's box, between rows, around all, between lines of text.
COLUMN, HEAD, ROW, MARGIN, LINE = 215, 34, 40, 16, 16
_PARTICIPANT = re.compile(r"participant (\w+)(?: as (.+))?")
_MESSAGE = re.compile(r"(\w+)(--?>>)(\w+): (.+)")
_NOTE = re.compile(r"Note over (\w+)(?:,(\w+))?: (.+)")


class DiagramError(ValueError):
    """A line is not of the part of Mermaid that is drawn here."""


@dataclass
class Diagram:
    """What a sequence diagram says: who takes part, and its rows from top to bottom."""

    people: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, ...]] = field(default_factory=list)


def parse(text: str) -> Diagram:
    """Return what a Mermaid text says.

    Raises:
        DiagramError: it is no sequence diagram, or has a line that is not understood.
    """
    kind, *lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if kind != "sequenceDiagram":
        raise DiagramError(f"a diagram begins with sequenceDiagram, got {kind!r}")
    diagram = Diagram()
    for line in lines:
        if match := _PARTICIPANT.fullmatch(line):
            diagram.people[match[1]] = match[2] or match[1]
        elif match := _MESSAGE.fullmatch(line):
            diagram.rows.append(("reply" if match[2] == "-->>" else "call", match[1], match[3], match[4]))
        elif match := _NOTE.fullmatch(line):
            diagram.rows.append(("note", match[1], match[2] or match[1], match[3]))
        else:
            raise DiagramError(f"a line is a participant, a message or a note, got {line!r}")
    unknown = {name for row in diagram.rows for name in row[1:3]} - set(diagram.people)
    if unknown:
        raise DiagramError(f"every name must be a participant, got {', '.join(sorted(unknown))}")
    return diagram


def svg(diagram: Diagram) -> str:
    """Return the picture."""
    middle = {name: MARGIN + COLUMN * (index + 0.5) for index, name in enumerate(diagram.people)}
    width = 2 * MARGIN + COLUMN * len(middle)
    y = MARGIN + HEAD + 24.0
    rows = []
    for kind, first, second, text in diagram.rows:
        lines = re.split(r"<br/?>", text)
        y += LINE * (len(lines) - 1)
        if kind == "note":
            left, right = sorted((middle[first], middle[second]))
            rows.append(_note(left - COLUMN / 2 + 8, right + COLUMN / 2 - 8, y, lines))
            y += 8
        elif first == second:
            rows.append(_own(middle[first], y, lines))
        else:
            rows.append(_arrow(middle[first], middle[second], y, lines, kind == "reply"))
        y += ROW
    height = y + MARGIN
    lives = [f'<path class="life" d="M{x} {MARGIN + HEAD}V{height - MARGIN}"/>' for x in middle.values()]
    heads = [_actor(x, diagram.people[name]) for name, x in middle.items()]
    label = escape("Sequence: " + ", ".join(diagram.people.values()))
    return (
        f'<svg class="sequence" role="img" aria-label="{label}" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{label}</title>{"".join(lives + heads + rows)}</svg>'
    )


def _actor(x: float, name: str) -> str:
    box = f'<rect class="actor" x="{x - COLUMN / 2 + 12}" y="{MARGIN}" width="{COLUMN - 24}" height="{HEAD}" rx="5"/>'
    return box + _text(x, MARGIN + HEAD / 2 + 5, [name], kind="boxed")


def _arrow(start: float, end: float, y: float, lines: list[str], is_reply: bool) -> str:
    back = 7 if end > start else -7
    line = f'<path class="arrow{" reply" if is_reply else ""}" d="M{start} {y}H{end - back / 2}"/>'
    head = f'<path class="head" d="M{end} {y}l{-back} -4v8z"/>'
    return line + head + _text((start + end) / 2, y - 6, lines)


def _own(x: float, y: float, lines: list[str]) -> str:
    line = f'<path class="arrow" d="M{x} {y - 8}h18v14h-12"/><path class="head" d="M{x} {y + 6}l7 -4v8z"/>'
    return line + _text(x + 24, y + 2 - LINE * (len(lines) - 1) / 2, lines, "start", rises=False)


def _note(left: float, right: float, y: float, lines: list[str]) -> str:
    height = LINE * len(lines) + 10
    box = f'<rect class="note" x="{left}" y="{y - height + 12}" width="{right - left}" height="{height}" rx="3"/>'
    return box + _text((left + right) / 2, y + 2, lines, kind="boxed")


def _text(
    x: float, y: float, lines: list[str], anchor: str = "middle", *, rises: bool = True, kind: str = "free"
) -> str:
    """Return lines of text; the last one at `y`, or the first if they do not rise."""
    top = y - LINE * (len(lines) - 1) if rises else y
    return "".join(
        f'<text class="{kind}" x="{x:g}" y="{top + LINE * index:g}" text-anchor="{anchor}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    )
