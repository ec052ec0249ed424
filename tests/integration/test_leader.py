"""Two beats with `-S cacheworkers`: one sends, the other takes over, and neither dies with the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.signals import after_task_publish
from kombu.exceptions import OperationalError

from cacheworkers import Cache, ConfigError
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.beat import LeaderScheduler, tell_send_errors_once

HERE = Path(__file__).parent
MakeCache = Callable[..., Cache]


class Beats:
    """A store, a broker, and beats, each a process of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.store, self.broker = Valkey().start(), Valkey().start()
        self.running: list[subprocess.Popen[bytes]] = []
        self._tmp_path = tmp_path
        self._queue: Any = redis.Redis.from_url(self.broker.url)

    def start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "REDIS_URL": self.store.url, "BROKER_URL": self.broker.url}
        words = [sys.executable, "-m", "celery", "-A", "beating", "beat", "-S", "cacheworkers", "-l", "INFO"]
        words += ["--pidfile", ""]
        with open(self._tmp_path / f"beat{len(self.running)}.log", "ab") as out:
            beat = subprocess.Popen(words, cwd=HERE, env=env, stdout=out, stderr=out)
        self.running.append(beat)
        return beat

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._tmp_path.glob("beat*.log")))

    def senders(self) -> set[int]:
        """Which processes have sent what is in the queue; it is emptied."""
        messages = self._queue.lpop("often", 10_000) or []
        return {int(message.decode().partition('"origin": "gen')[2].partition("@")[0]) for message in messages}

    def leader(self, *of: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """The one of these beats that sends, once one does."""
        self.senders()
        found: set[int] = set()

        def one_sends() -> bool:
            found.update(self.senders())
            return any(beat.pid in found for beat in of)

        wait_until(one_sends)
        return next(beat for beat in of if beat.pid in found)

    def only_sender(self) -> subprocess.Popen[bytes]:
        """The beat that has sent some thirty in a row, once one has: a leader that was paused for long is succeeded."""
        found: set[int] = set()

        def one_sends_alone() -> bool:
            nonlocal found
            self.senders()
            wait_until(lambda: self.sent("often") >= 30)
            found = self.senders()
            return len(found) == 1

        wait_until(one_sends_alone)
        return next(beat for beat in self.running if {beat.pid} == found)

    def nobody_sends(self) -> bool:
        """Whether all that was sent while some renewals failed is nothing."""
        self.senders()
        failures = self.logs().count("cannot renew its lease")
        wait_until(lambda: self.logs().count("cannot renew its lease") >= failures + 4)
        return not self.senders()

    def sent(self, queue: str) -> int:
        return int(self._queue.llen(queue))

    def close(self) -> None:
        for beat in self.running:
            if beat.poll() is None:
                beat.kill()
                beat.wait()
        self.store.close()
        self.broker.close()


@pytest.fixture
def beats(tmp_path: Path) -> Iterator[Beats]:
    found = Beats(tmp_path)
    yield found
    found.close()


def two(beats: Beats) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """The beat that leads, and another that stands by."""
    first = beats.start()
    leader = beats.leader(first)
    second = beats.start()
    wait_until(lambda: beats.logs().count("beat: Starting") == 2)
    return leader, second


def test_one_sends_and_the_other_takes_over_when_it_is_killed(beats: Beats) -> None:
    """Within the lease; and what was sent before is not sent again."""
    both = two(beats)
    leader = beats.only_sender()
    [other] = set(both) - {leader}

    leader.send_signal(signal.SIGKILL)
    leader.wait()
    client: Any = redis.Redis.from_url(beats.store.url)
    assert client.pttl("cw:leader") <= 1500, "no later than that it is another's"

    assert beats.leader(other) is other
    assert beats.sent("daily") == 0, "the new leader knows that a day has not passed"


def test_a_beat_that_ends_gives_its_lease_back(beats: Beats) -> None:
    leader, other = two(beats)

    leader.terminate()
    leader.wait(60)

    client: Any = redis.Redis.from_url(beats.store.url)
    assert beats.leader(other) is other
    assert client.pttl("cw:leader") > 0
    assert leader.returncode == 0


def test_neither_dies_with_the_store_and_one_leads_when_it_is_back(beats: Beats) -> None:
    """Without a store nobody sends, once the lease has run out: nobody could say who may."""
    leader, other = two(beats)

    beats.store.kill()
    wait_until(beats.nobody_sends)
    assert "this beat stands by" in beats.logs()
    assert leader.poll() is None and other.poll() is None

    beats.store.start()
    beats.only_sender()
    assert leader.poll() is None and other.poll() is None


def test_a_broker_that_is_away_is_one_line_and_its_return_another(beats: Beats) -> None:
    """Not a traceback for each task that was due; and beat goes on when it is back."""
    beats.leader(beats.start())
    away = "beat cannot send, and tries on: "

    beats.broker.kill()
    wait_until(lambda: away in beats.logs())
    attempts = beats.logs().count("Sending due task")
    wait_until(lambda: beats.logs().count("Sending due task") >= attempts + 4)
    beats.broker.start()
    wait_until(lambda: "beat sends again" in beats.logs())

    told = [line.partition(away)[2] for line in beats.logs().splitlines() if away in line]
    assert len(told) == len(set(told)), "what the broker's errors say is told once"
    assert "Traceback" not in beats.logs() and "Message Error" not in beats.logs()
    wait_until(lambda: beats.sent("often") > 0)


# -- one scheduler, by hand


def scheduler(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, **entries: float) -> tuple[Any, list[str]]:
    """A scheduler that notes what it sends, with entries that are due every so many seconds."""
    app = Celery("by hand", broker="memory://")
    app.conf.beat_schedule = {name: {"task": name, "schedule": every} for name, every in entries.items()}
    make_cache(celery=app, beat_lease_for=60.0)
    sent: list[str] = []
    made: Any = LeaderScheduler(app)
    made.schedule = {name: entry for name, entry in made.schedule.items() if name in entries}
    monkeypatch.setattr(made, "send_task", lambda name, *args, **options: sent.append(name))
    return made, sent


def test_an_app_without_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="bound to no Cache"):
        LeaderScheduler(Celery("unbound", broker="memory://"))


def test_a_beat_that_is_started_anew_goes_on_where_it_stopped(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no schedule file: the store knows what was sent when; what was due meanwhile is sent once."""
    first, _ = scheduler(make_cache, monkeypatch, hourly=3600.0, minutely=60.0)
    store = first._store
    store.note_sent("hourly", time.time() - 3000.0).run()
    store.note_sent("minutely", time.time() - 3000.0).run()

    again, sent = scheduler(make_cache, monkeypatch, hourly=3600.0, minutely=60.0)
    while not again.tick():
        pass

    assert sent == ["minutely"]


def test_a_leader_whose_clock_was_ahead_keeps_nothing_from_being_sent(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has sent in our future it has sent by now."""
    beat, sent = scheduler(make_cache, monkeypatch, often=0.001)
    beat._store.note_sent("often", time.time() + 86400.0).run()

    wait_until(lambda: beat.tick() == 0 and sent)


def test_what_is_due_is_not_sent_when_the_lease_has_run_out_meanwhile(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reaching the broker may have taken longer than the lease; another has sent it by now, or will."""
    beat, sent = scheduler(make_cache, monkeypatch, often=0.001)
    renew = beat._renew

    def renewed_just_in_time() -> None:
        renew()
        beat._leads_until = time.monotonic()

    wait_until(lambda: beat.tick() == 0 or sent)
    monkeypatch.setattr(beat, "_renew", renewed_just_in_time)
    sent.clear()
    beat.tick()
    assert sent == []

    monkeypatch.setattr(beat, "_renew", renew)
    beat._renews_at = float("-inf")
    wait_until(lambda: beat.tick() == 0 and sent == ["often"])


def test_an_error_is_told_until_something_is_sent_and_what_is_no_broker_s_each_time(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the broker says is told once; a task that cannot be sent for another reason keeps its traceback."""
    beat, _ = scheduler(make_cache, monkeypatch, often=0.001)
    entry = beat.schedule["often"]
    beat._leads_until = float("inf")

    def fails(error: Exception) -> None:
        def send(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(beat, "send_task", send)
        beat.apply_entry(entry)

    tell_send_errors_once()
    after_task_publish.send(sender="often")
    caplog.clear()
    for text in ("refused", "refused", "out of memory", "refused"):
        fails(OperationalError(text))
    fails(ValueError("malformed"))
    fails(ValueError("malformed"))
    after_task_publish.send(sender="often")
    fails(OperationalError("refused"))
    after_task_publish.send(sender="often")
    after_task_publish.send(sender="often")

    told = [(record.getMessage().splitlines()[0], bool(record.exc_info)) for record in caplog.records]
    refused = ("beat cannot send, and tries on: refused", False)
    malformed = ("Message Error: Couldn't apply scheduled task often: malformed", True)
    again = ("beat sends again", False)
    no_memory = ("beat cannot send, and tries on: out of memory", False)
    assert told == [refused, no_memory, malformed, malformed, again, refused, again]


def test_two_schedulers_lead_one_after_the_other(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    one, by_one = scheduler(make_cache, monkeypatch, often=0.001)
    other, by_other = scheduler(make_cache, monkeypatch, often=0.001)

    wait_until(lambda: one.tick() == 0 and by_one)
    assert other.tick() == other.max_interval and not by_other
    one.close()
    other._renews_at = float("-inf")
    wait_until(lambda: other.tick() == 0 and by_other)
    one._renews_at = float("-inf")
    assert one.tick() == one.max_interval


def test_a_broker_that_cannot_be_reached_costs_a_tick(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    beat, sent = scheduler(make_cache, monkeypatch, often=0.001)

    def refused() -> None:
        raise OperationalError("refused")

    with monkeypatch.context() as broken:
        broken.setattr(beat, "_ensure_connected", refused)
        wait_until(lambda: beat.tick() == beat.max_interval)
        assert sent == []

    wait_until(lambda: beat.tick() == 0 and sent)
