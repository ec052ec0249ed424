"""Access scores: reads that count half with every half-life, kept as one instant for each call.

n reads together are worth as much as a single one that is log2(n) half-lives younger.  That read's instant, `read_at`,
needs no halving while time passes.  It shows how often a call is read and, if that is seldom, when it was read last.
`store/commands/lua/add_accesses.lua` does the same sums.
"""

from __future__ import annotations

import math


def score_of(read_at: float, now: float, half_life: float) -> float:
    """Return the reads that a call's `read_at` is worth now; no more than a float can be."""
    half_lives = (read_at - now) / half_life
    return float(2**half_lives) if half_lives < 1000 else math.inf
