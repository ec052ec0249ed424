"""The load generator's streams."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from app.load import loopback, product_ids, trace_keys, zipf_keys


@pytest.mark.parametrize(("kind", "code"), [("ints", ">3i"), ("longs", ">3q")])
def test_traces_of_both_formats_are_read(tmp_path: Path, kind: str, code: str) -> None:
    path = tmp_path / "trace.xz"
    path.write_bytes(lzma.compress(struct.pack(code, 5, -7, 5)))

    assert trace_keys(path, kind) == [5, -7, 5]


def test_cut_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.xz"
    path.write_bytes(lzma.compress(b"12345"))

    with pytest.raises(ValueError, match="5 bytes"):
        trace_keys(path, "ints")


def test_equal_keys_are_one_product() -> None:
    assert product_ids([9, 4, 9, 8], 10) == [1, 2, 1, 3]
    assert product_ids([1, 2, 3], 2) == [1, 2, 1]


def test_zipf_is_seeded_and_skewed() -> None:
    keys = zipf_keys(10_000, 100, 1.0)

    assert keys == zipf_keys(10_000, 100, 1.0)
    assert keys.count(1) > 5 * keys.count(50)


def test_only_this_machine_is_loaded() -> None:
    assert loopback("http://127.0.0.1:8000") == ("127.0.0.1", 8000)
    with pytest.raises(ValueError, match=r"example\.org"):
        loopback("http://example.org")
