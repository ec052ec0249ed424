"""Doctor's rules, and what the documentation says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cacheworkers.ops.doctor.diagnose import RULES
from cacheworkers.ops.doctor.findings import Level, Rule, exit_code, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "doctor.md"


def test_the_documentation_has_every_rule_as_the_code_has_it() -> None:
    """After a change, put `table(RULES)` of `cacheworkers.ops.doctor` at the end of docs/how-to/doctor.md."""
    assert PAGE.read_text().endswith("\n\n" + table(RULES) + "\n")


def test_rules_are_told_apart_by_their_names() -> None:
    names = [rule.check for rule in RULES]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.check)
def test_a_rule_says_what_why_and_how(rule: Rule) -> None:
    """In sentences, each of which fills one cell of the table."""
    assert rule.level in ("note", "warning", "error")
    for text in (rule.finds, rule.why, rule.fix):
        assert text.endswith(".") and "\n" not in text
    assert len(re.split(r" (?<!\\)\| ", table([rule]).splitlines()[2])) == 5


@pytest.mark.parametrize(
    ("levels", "code"),
    [((), 0), (("ok", "note"), 0), (("ok", "warning", "note"), 1), (("warning", "error"), 2), (("error",), 2)],
)
def test_the_exit_code_is_that_of_the_worst(levels: tuple[Level, ...], code: int) -> None:
    rules = [Rule("a", level, "b.", "c.", "d.") for level in levels]

    assert exit_code(rule.finding(rule.level != "ok", "e") for rule in rules) == code
