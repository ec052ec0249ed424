"""Random walks through the rules of a Hypothesis machine, drawn from a seed alone.

Hypothesis draws by what it has seen before and by the modules that are loaded, favours what is small and odd, and gives
up where a real store answers otherwise the second time.  A walk takes every rule as likely as any other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine


def walk(machine: type[RuleBasedStateMachine], seed: int, steps: int, choices: Mapping[str, Sequence[Any]]) -> None:
    """Play once what a seed says, and check the machine's invariants after each step.

    Args:
        choices: the name of a rule's argument -> what it may be.
    """
    chance = random.Random(seed)
    going = machine()
    members = [each for _, each in sorted(vars(machine).items())]
    rules = [each.hypothesis_stateful_rule for each in members if hasattr(each, "hypothesis_stateful_rule")]
    invariants = [each for each in members if hasattr(each, "hypothesis_stateful_invariant")]
    assert rules and invariants
    try:
        for _ in range(steps):
            each = chance.choice([rule for rule in rules if all(holds(going) for holds in rule.preconditions)])
            each.function(going, **{name: chance.choice(choices[name]) for name in sorted(each.arguments)})
            for invariant in invariants:
                invariant(going)
    finally:
        going.teardown()
