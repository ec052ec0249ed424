"""Histories in files: recorded by several processes, read as one, and bad lines named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.history import History, HistoryError, Invalidate, Read, Received, Recorder, Write, check

READ = '{"op":"read","key":"a","version":1,"began":5.0,"ended":6.0,"tier":"store","by":"price[1]"}'
INVALIDATED = '{"op":"invalidate","key":"a","began":1.0,"ended":2.0,"version":2}'


def test_what_was_acknowledged_is_compared_with_reads_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "writer").write_text(INVALIDATED)
    (tmp_path / "reader").write_text(f"\n{READ}\n")

    [stale] = check(History([tmp_path / "reader", tmp_path / "writer"]))

    assert (stale.read.version, stale.least, stale.late) == (1, 2, 3.0)
    assert str(stale) == ("a read by price[1] from store at 5.000000 is version 1, 2 was acknowledged; 3.000000 s late")


def test_it_is_late_since_the_first_acknowledgement_it_missed() -> None:
    reported = [Invalidate("a", at - 1.0, at, version) for version, at in ((1, 2.0), (2, 4.0), (3, 8.0))]

    [stale] = check([*reported, Read("a", 1, 9.0)])

    assert (stale.least, stale.late) == (3, 5.0)


def test_an_iterator_is_as_good_as_a_list() -> None:
    assert len(check(iter([Invalidate("a", 1.0, 2.0, 5), Read("a", 4, 3.0)]))) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "Expected `object`"),
        ('{"op":"read","key":"a"}', "missing required field `version`"),
        ('{"op":"drop","key":"a","began":1}', "Invalid value 'drop'"),
        ('{"op":"write","key":"a","version":"1","began":1}', r"Expected `int`, got `str` - at `\$.version`"),
        ('{"op":"write","key":"a","version":1,"began":1,"colour":2}', "unknown field `colour`"),
        ('{"op":"write","key":"a","version":1,"began":2,"ended":1}', "ended must be >= began, got 1.0 after 2.0"),
        ("\xff", "malformed"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_bytes(f"{READ}\n".encode() + line.encode("latin-1") + f"\n{INVALIDATED}".encode())

    with pytest.raises(HistoryError, match=f"^{path}:2: .*{reason}"):
        list(History([path]))


def test_an_operation_is_recorded_with_its_two_instants(tmp_path: Path) -> None:
    began = time.monotonic()
    with Recorder(tmp_path / "h") as recorder:
        recorder.wrote("a", 1, began)
        recorder.invalidated("a", began, version=1)
        recorder.read("a", 1, began, tier="l1", by="price[1]")

        recorder.received("web1", began)

    wrote, invalidated, read, received = History([tmp_path / "h"])

    assert isinstance(wrote, Write) and isinstance(invalidated, Invalidate)
    assert received == Received("web1", began, received.ended)
    assert read == Read("a", 1, began, read.ended, "l1", "price[1]")
    assert wrote.ended is not None and invalidated.ended is not None and read.ended is not None
    assert began <= wrote.ended <= invalidated.ended <= read.ended <= time.monotonic()


def record(path: Path, number: int, ready: object) -> None:
    """Record until killed."""
    recorder = Recorder(path)
    while True:
        recorder.read(f"key:{number}" + "x" * 100, 1, time.monotonic())
        ready.set()  # type: ignore[attr-defined]


@pytest.mark.parametrize("left", range(0, len(READ), 7))
def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path, left: int) -> None:
    """A process was killed in the middle of it, and another went on."""
    path = tmp_path / "h"
    path.write_text(f"\n{READ[:left]}")
    with Recorder(path) as recorder:
        recorder.invalidated("price[1]", 1.0, version=2)

    [found] = History([path])

    assert isinstance(found, Invalidate)


def test_lines_of_processes_that_are_killed_are_whole(tmp_path: Path) -> None:
    """Several append to one file, and die in the middle of it."""
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "h"
    recording = [(n, context.Event()) for n in range(3)]
    processes = [context.Process(target=record, args=(path, n, ready)) for n, ready in recording]
    for process in processes:
        process.start()
    for _, ready in recording:
        assert ready.wait(60)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    assert {each.key[:5] for each in History([path])} == {"key:0", "key:1", "key:2"}


def test_what_its_memory_had_received_a_read_must_know(tmp_path: Path) -> None:
    """Within `l1_for` only what has not been received may be missed."""
    read, reported = Read("a", 1, 5.0, tier="l1", memory="web1"), Invalidate("a", 1.0, 2.0, 2)

    assert check([reported, read, Received("web1", 2.5, 3.0)], l1_for=10.0)
    assert not check([reported, read, Received("web2", 2.5, 3.0), Received("web1", 1.5, 3.0)], l1_for=10.0)
