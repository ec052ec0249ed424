"""The page of topologies: its table is made from the tests, and each cell is one of them."""

from __future__ import annotations

import fnmatch
import re

import matrix


def test_the_table_is_current() -> None:
    assert matrix.PAGE.read_text() == matrix.page(), "write it again: python tests/topologies/matrix.py"


def test_each_cell_is_a_test_and_each_test_is_in_the_table() -> None:
    cells = re.findall(r"`(test_\w+)\[([\w*-]+)\]`", matrix.PAGE.read_text())

    assert {name for name, _ in cells} == set(matrix.tests())
    covered = {(name, each) for name, pattern in cells for each in fnmatch.filter(matrix.ids(), pattern)}
    assert covered == {(name, each) for name in matrix.tests() for each in matrix.ids()}
