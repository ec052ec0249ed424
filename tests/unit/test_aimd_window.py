"""The throttle: quick loads open the window, slow ones halve it, and what is slow is learnt."""

from __future__ import annotations

from cacheworkers.local.aimd_window import AimdWindow


def fed(throttle: AimdWindow, load_time: float, loads: int) -> AimdWindow:
    for _ in range(loads):
        throttle.note(load_time)
    return throttle


def test_quick_loads_open_the_window_up_to_its_bound() -> None:
    assert fed(AimdWindow(64), 0.01, 1).window == 8
    assert fed(AimdWindow(64), 0.01, 8).window == 10
    assert fed(AimdWindow(64), 0.01, 1000).window == 64


def test_slow_loads_halve_it_once_a_window_down_to_one() -> None:
    throttle = fed(AimdWindow(64), 0.01, 1000)

    fed(throttle, 0.2, 64)
    assert throttle.window == 32
    assert fed(throttle, 0.2, 1000).window == 1


def test_loads_of_a_millisecond_more_are_no_sign_of_anything() -> None:
    throttle = fed(AimdWindow(64), 0.0005, 1000)

    assert fed(throttle, 0.003, 1000).window == 64


def test_a_database_that_has_become_slower_for_good_is_learnt() -> None:
    throttle = fed(AimdWindow(64), 0.01, 1000)
    fed(throttle, 0.1, 500)
    assert throttle.is_slow

    fed(throttle, 0.1, 3000)

    assert not throttle.is_slow
    assert throttle.window > 1


def test_whoever_needs_the_workers_halves_it() -> None:
    throttle = fed(AimdWindow(64), 0.01, 1000)
    throttle.halve()
    assert throttle.window == 32


def test_loads_that_wait_for_workers_halve_it_until_they_wait_no_longer() -> None:
    """A load a second, by one worker: however many are admitted, no more than two wait."""
    throttle = AimdWindow(64)
    for waited in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
        throttle.note(1.0, waited)
    assert throttle.window == 4

    windows = []
    for _ in range(200):
        throttle.note(1.0, throttle.window - 1.0)
        windows.append(throttle.window)

    assert max(windows[8:]) <= 4
    assert min(windows) >= 2
