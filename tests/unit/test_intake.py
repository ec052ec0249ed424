"""pushes are taken in by one thread at a time, the listener's or a reader's, and none is lost unnoticed."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cacheworkers.store.tracking import tracking_connection as hearing
from cacheworkers.store.tracking.tracking_connection import InvalidationReader


class Received:
    """An ear, what it has heard, and the store at the other end."""

    def __init__(self) -> None:
        self.store, self.socket = socket.socketpair()
        self.pushes: list[bytes] = []
        self.proofs = 0
        self.failures = 0
        self.is_busy = False
        self.intake = InvalidationReader([self], self.take_in, self.prove, self.fail, lambda: self.is_busy)  # type: ignore[list-item, arg-type]
        self.during: Callable[[], None] = lambda: None

    def take_in(self, ear: Any) -> None:
        assert ear is self
        self.pushes.append(self.socket.recv(100))
        self.during()

    def prove(self) -> None:
        self.proofs += 1

    def fail(self) -> None:
        self.failures += 1


@pytest.fixture
def heard() -> Iterator[Received]:
    heard = Received()
    with heard.store, heard.socket:
        yield heard


def raising(error: BaseException) -> Callable[[], None]:
    def fails() -> None:
        raise error

    return fails


def test_a_reader_takes_in_what_has_arrived_and_proves_it(heard: Received) -> None:
    heard.store.send(b"push")

    heard.intake.run_here()

    assert (heard.pushes, heard.proofs) == ([b"push"], 1)


def test_the_thread_that_wakes_up_too_late_finds_nothing_and_does_not_wait(heard: Received) -> None:
    heard.store.send(b"push")
    heard.intake.run_here()

    heard.intake.run()

    assert heard.pushes == [b"push"]


def test_a_reader_that_finds_nothing_does_nothing(heard: Received) -> None:
    heard.intake.run_here()

    assert (heard.pushes, heard.proofs) == ([], 0)


def test_a_reader_leaves_it_to_the_thread_that_takes_in(heard: Received) -> None:
    """It waits for a moment, and goes on."""
    heard.store.send(b"1")

    def reads() -> None:
        heard.store.send(b"2")
        reader = threading.Thread(target=heard.intake.run_here)
        reader.start()
        reader.join()

    heard.during = reads
    heard.intake.run()

    assert heard.pushes == [b"1"]


def test_a_reader_that_would_have_to_wait_for_itself_goes_on(heard: Received) -> None:
    """A finalizer that reads, in the middle of a change of what is kept, must not change it."""
    heard.store.send(b"push")
    heard.is_busy = True

    heard.intake.run_here()

    assert (heard.pushes, heard.failures) == ([], 0)
    heard.intake.run()
    assert heard.pushes == [b"push"]


def test_one_reader_looks_at_a_time_also_within_itself(heard: Received) -> None:
    heard.store.send(b"1")

    def reads() -> None:
        heard.during = lambda: None
        heard.store.send(b"2")
        heard.intake.run_here()

    heard.during = reads
    heard.intake.run_here()

    assert heard.pushes == [b"1"]


def test_a_lost_connection_is_called_that_whoever_finds_out(heard: Received) -> None:
    heard.store.send(b"push")
    heard.during = raising(ConnectionResetError("by peer"))

    heard.intake.run_here()

    assert heard.failures == 1
    with pytest.raises(ConnectionResetError, match="by peer"):
        heard.intake.run()


def test_a_child_that_was_forked_meanwhile_takes_nothing_from_its_parent(
    heard: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard.store.send(b"push")
    monkeypatch.setattr(hearing, "os", SimpleNamespace(getpid=lambda: -1))

    heard.intake.run_here()

    assert (heard.pushes, heard.proofs) == ([], 0)


def test_a_connection_is_closed_when_the_reader_has_left_it(heard: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "_READER_LEAVES_WITHIN", 60.0)
    heard.store.send(b"push")
    order: list[str] = []
    closing = threading.Thread(target=heard.intake.hang_up)

    def reads() -> None:
        closing.start()
        order.append("read")

    heard.hang_up = lambda: order.append("closed")  # type: ignore[attr-defined]
    heard.during = reads
    heard.intake.run_here()
    closing.join()

    assert order == ["read", "closed"]


def test_what_a_reader_could_not_take_in_is_told_and_ends_the_listening(heard: Received) -> None:
    """What it had received is nowhere else."""
    heard.store.send(b"push")
    heard.during = raising(ValueError("no such key"))

    heard.intake.run_here()

    assert heard.failures == 1
    with pytest.raises(OSError, match="a reader could not take in a push: ValueError"):
        heard.intake.run()


def test_a_reader_takes_nothing_in_after_that(heard: Received) -> None:
    heard.store.send(b"1")
    heard.during = raising(ValueError())
    heard.intake.run_here()

    heard.store.send(b"2")
    heard.intake.run_here()

    assert heard.pushes == [b"1"]


def test_what_a_signal_raises_reaches_the_reader_and_ends_the_listening(heard: Received) -> None:
    heard.store.send(b"push")
    heard.during = raising(KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        heard.intake.run_here()

    assert heard.failures == 1
    with pytest.raises(OSError, match="KeyboardInterrupt"):
        heard.intake.run()


def test_a_push_that_was_taken_in_by_half_is_noticed_whoever_was_to_tell(heard: Received) -> None:
    heard.store.send(b"1")
    heard.during = raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        heard.intake.run()

    heard.store.send(b"2")
    heard.intake.run_here()

    assert (heard.pushes, heard.failures) == ([b"1"], 1)


def test_a_reader_that_never_ends_does_not_keep_the_thread(heard: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "_READER_LOST_AFTER", 0.01)
    heard.store.send(b"push")
    found: list[BaseException] = []

    def listens() -> None:
        try:
            heard.intake.run()
        except OSError as error:
            found.append(error)

    def stays() -> None:
        thread = threading.Thread(target=listens)
        thread.start()
        thread.join()

    heard.during = stays
    heard.intake.run_here()

    assert "a reader has been taking in pushes for 0.02 s" in str(found[0])


def test_a_reader_does_not_touch_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a record would keep it waiting: it lets the thread in instead."""
    naps: list[float] = []
    monkeypatch.setattr(hearing, "time", SimpleNamespace(sleep=naps.append))
    store, ear = socket.socketpair()
    wrapped = ssl.create_default_context().wrap_socket(ear, server_hostname="store", do_handshake_on_connect=False)
    ears: Any = [SimpleNamespace(socket=wrapped)]
    intake = InvalidationReader(ears, raising(AssertionError()), lambda: None, lambda: None, lambda: False)  # type: ignore[arg-type]
    with store, wrapped:
        intake.run_here()
        assert naps == []

        store.send(b"record")
        intake.run_here()

    assert naps == [hearing._GIVE_WAY_FOR]
