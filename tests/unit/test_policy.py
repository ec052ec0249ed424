"""Policy: validated when made, and its messages name field, value and rule."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from cacheworkers.errors import ConfigError
from cacheworkers.policy import MAX_FOR, MAX_LOAD_FOR, Policy

DURATIONS = ("fresh_for", "stale_for", "error_for", "negative_for", "hold_off_for", "l1_for", "load_for", "wait_for")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fresh_for": -1}, "fresh_for must be >= 0 seconds, got -1"),
        ({"fresh_for": "60"}, "fresh_for must be a number >= 0 seconds, got '60'"),
        ({"stale_for": True}, "stale_for must be a number >= 0 seconds, got True"),
        ({"error_for": None}, "error_for must be a number >= 0 seconds, got None"),
        ({"fresh_for": MAX_FOR + 1}, "fresh_for must be <= 3.16224e+07 seconds, got 31622401.0"),
        ({"load_for": 0}, "load_for must be > 0 seconds, got 0"),
        ({"load_for": MAX_LOAD_FOR + 1}, "load_for must be <= 1800 seconds, got 1801.0"),
        ({"wait_for": -0.5}, "wait_for must be >= 0 seconds, got -0.5"),
        ({"early": 101}, "early must be <= 100, got 101"),
        ({"jitter": 0.6}, "jitter must be <= 0.5, got 0.6"),
        ({"jitter": -0.1}, "jitter must be >= 0, got -0.1"),
        ({"on_timeout": "hope"}, 'on_timeout must be "load" or "raise", got \'hope\''),
        ({"version": 0}, "version must be a whole number >= 1, got 0"),
        ({"version": 1.5}, "version must be a whole number >= 1, got 1.5"),
        ({"version": True}, "version must be a whole number >= 1, got True"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_rule(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Policy(**wrong)


@pytest.mark.parametrize("field", DURATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_no_duration_is_endless_or_negative(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        Policy(**{field: value})


@pytest.mark.parametrize("field", sorted(set(DURATIONS) - {"load_for"}))
def test_every_duration_but_the_deadline_may_be_zero(field: str) -> None:
    assert getattr(Policy(**{field: 0}), field) == 0


def test_l1_for_may_be_left_to_the_config() -> None:
    assert Policy().l1_for is None


def test_replace_validates_again_and_leaves_the_rest() -> None:
    policy = Policy(fresh_for=5, version=2)

    assert policy.replace(stale_for=9) == Policy(fresh_for=5, stale_for=9, version=2)
    with pytest.raises(ConfigError, match="stale_for"):
        policy.replace(stale_for=-1)


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().fresh_for = 1  # type: ignore[misc]  # that is the point
