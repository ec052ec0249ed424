"""Forecasts of reads, and what is learnt from what came of them."""

from __future__ import annotations

import pytest

from cacheworkers.local.read_forecasts import BURST, Known, ReadForecasts


def test_at_first_reads_are_taken_to_come_in_bursts() -> None:
    known = Known()

    assert known.chance(0.0) == known.chance(BURST - 1.0) == 1.0
    assert known.chance(4 * BURST - 1.0) == pytest.approx(1 / 16)


def test_they_are_never_taken_to_come_in_larger_ones() -> None:
    """Where the hottest calls pause, nothing can be known of the others."""
    assert Known(1e6, 0.05).chance(4 * BURST - 1.0) == Known().chance(4 * BURST - 1.0)


@pytest.mark.parametrize(("chance", "expected", "cost"), [(1.0, 3.0, 1.0), (0.0, 3.0, 0.25), (0.5, 1.0, 0.75)])
def test_a_load_ahead_costs_a_part_of_one_unless_it_is_in_vain(
    chance: float, expected: float, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Known, "chance", lambda self, reads: chance)

    assert Known().cost(expected) == cost


def made(reads: float = 9.0, calls: int = 100) -> ReadForecasts:
    forecasts = ReadForecasts()
    forecasts.make(1000.0, [(f"price[{n}]", 1000.0 + n, reads) for n in range(calls)])
    return forecasts


def test_forecasts_are_made_once_a_period() -> None:
    assert ReadForecasts().are_due(0.0, 300.0)
    assert not made().are_due(1299.0, 300.0)
    assert made().are_due(1300.0, 300.0)


def test_calls_that_were_read_make_bursts_unlikely() -> None:
    forecasts, known = made(), Known()
    for _ in range(10):
        known = forecasts.judged(known, {call: 2000.0 for call in forecasts.calls})

    assert known.chance(9.0) < 0.01


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_call_was_not_read_if_its_score_is_the_same_or_gone(is_forgotten: bool) -> None:
    """One in ten: that is the chance of the next."""
    forecasts, known = made(), Known()
    for _ in range(30):
        read_at: dict[str, float | None] = {call: 2000.0 for call in forecasts.calls}
        read_at |= {f"price[{n}]": None if is_forgotten else 1000.0 + n for n in range(10)}
        known = forecasts.judged(known, read_at)

    assert known.chance(9.0) == pytest.approx(0.1, rel=0.05)


def test_what_came_of_earlier_ones_counts_less() -> None:
    forecasts, known = made(), Known()
    for _ in range(30):
        known = forecasts.judged(known, {})
    evenly = {call: 2000.0 for call in forecasts.calls}

    after = [known := forecasts.judged(known, evenly) for _ in range(20)]

    chances = [each.chance(9.0) for each in after]
    assert chances == sorted(chances, reverse=True) and chances[-1] < 0.01
