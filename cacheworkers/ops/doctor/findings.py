"""Findings of doctor and the rules they come from: what is checked, why it matters, how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        check: the rule's name.
        level: "ok"; "note", good to know; "warning", something is slower or less safe than it should be; "error",
            something is wrong or does not work.
        what: what is so, with values.
        why: why it matters.
        fix: what to do; empty when it is ok.
    """

    check: str
    level: Level
    what: str
    why: str
    fix: str


class Rule(msgspec.Struct, frozen=True):
    """What a check looks for; `finds` says it in general, as documentation does.

    Attributes:
        level: of the finding when it is so.
    """

    check: str
    level: Level
    finds: str
    why: str
    fix: str

    def finding(self, is_so: bool, what: str, fix: str = "") -> Finding:
        """Return the finding: the rule's when it is so, with a more exact fix if there is one, else an "ok" one."""
        if is_so:
            return Finding(self.check, self.level, what, self.why, fix or self.fix)
        return Finding(self.check, "ok", what, self.why, "")


def rules_in(module: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Return the rules among a module's names, in the order of their definition."""
    return tuple(each for each in module.values() if isinstance(each, Rule))


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 when nothing is worse than a note, 1 with a warning, 2 with an error."""
    levels = {finding.level for finding in findings}
    return 2 if "error" in levels else 1 if "warning" in levels else 0


def table(rules: Iterable[Rule]) -> str:
    """Return rules as a Markdown table."""
    lines = ["| check | level | what | why | fix |", "|---|---|---|---|---|"]
    for rule in rules:
        cells = [f"`{rule.check}`", rule.level, rule.finds, rule.why, rule.fix]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
