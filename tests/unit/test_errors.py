"""Errors: each is the same after a round trip through pickle, as between the processes of a pool."""

from __future__ import annotations

import copy
import pickle

import pytest

from cacheworkers import errors

_ARGUMENTS = ("product", "product[42]", "ValueError", "unlucky", 1.5)
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def made(kind: type[Exception]) -> Exception:
    if issubclass(kind, errors.LoadError):
        return kind(*_ARGUMENTS)
    if issubclass(kind, errors.LoadErrors):
        return kind({1: 10}, {2: errors.LoadError(*_ARGUMENTS), 3: errors.LoadTimeout("too late")})
    return kind("what, and why")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_survives_pickle_and_copy(kind: type[Exception]) -> None:
    error = made(kind)

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert _reported(again) == _reported(error)


def _reported(error: Exception) -> object:
    """What an error carries besides its text, as far as it can be compared."""
    if isinstance(error, errors.LoadErrors):
        return error.values, {key: (type(each), str(each), vars(each)) for key, each in error.errors.items()}
    return vars(error)
