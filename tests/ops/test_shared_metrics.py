"""Metrics of processes that share a directory: those that have ended lose their gauges, and keep their counts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cacheworkers.ops.shared_metrics import SharedMetrics, forget_the_dead, shared_registry

#: A process that counts two loads, holds seven entries and has lost the store; it ends with its standard input.
PROCESS = """
import sys
from cacheworkers import events
from cacheworkers.ops.metrics import Metrics
hook = Metrics()
for _ in range(2):
    hook(events.Loaded("product", "product[1]", "stored", 0.2, 1, "worker"))
hook(events.StoreLost("gone"))
hook(events.MemoryUsed(7, 7, 7))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def begun() -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", PROCESS]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def killed(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def shown(registry: CollectorRegistry) -> dict[str, float]:
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def registry_of(directory: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    SharedMetrics(registry, directory)
    return registry


def test_a_process_that_has_ended_keeps_its_counts_alone(directory: Path) -> None:
    registry = registry_of(directory)
    first, second = begun(), begun()
    assert shown(registry)["cacheworkers_memory_entries"] == 14
    killed(first)

    found = shown(registry)
    assert found["cacheworkers_load_seconds_count"] == 4
    assert found["cacheworkers_memory_entries"] == 7
    assert found["cacheworkers_store_lost"] == 1

    killed(second)
    found = shown(registry)
    assert found["cacheworkers_load_seconds_count"] == 4
    assert found["cacheworkers_store_losses_total"] == 2
    assert found.get("cacheworkers_memory_entries", 0) == 0
    assert found.get("cacheworkers_store_lost", 0) == 0


def test_the_directory_does_not_grow_with_processes_that_were(directory: Path) -> None:
    registry = registry_of(directory)
    sizes = set()
    for count in range(1, 5):
        killed(begun())
        assert shown(registry)["cacheworkers_load_seconds_count"] == 2 * count
        sizes.add(frozenset(path.name for path in directory.iterdir()))

    assert len(sizes) == 1
    assert sizes.pop() == {"archive.lock", "counter_archive.db", "histogram_archive.db"}


def test_scrapes_together_count_nothing_twice(directory: Path) -> None:
    """Each of several servers may find the dead first, while another reads."""
    for _ in range(3):
        killed(begun())
    found: list[float] = []

    def scrape() -> None:
        registry = registry_of(directory)
        found.extend(shown(registry)["cacheworkers_load_seconds_count"] for _ in range(20))

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [6.0] * 80


def test_a_directory_that_is_not_there_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's tmpfs is empty at first."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "run" / "metrics"))

    killed(begun())

    registry = shared_registry()
    assert registry is not None and shown(registry)["cacheworkers_load_seconds_count"] == 2.0


@pytest.mark.parametrize("owner", [99_999_991, 1], ids=["of one that has ended", "of one that runs"])
@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0", b"\x00\x10\0\0\0\0\0\0", bytes(8)], ids=len)
def test_a_file_that_is_cut_short_costs_no_scrape(directory: Path, owner: int, content: bytes) -> None:
    """A disk that was full, or a process killed while it made its file: all alerts would go blind."""
    killed(begun())
    for kind in ("counter", "histogram", "gauge_liveall"):
        (directory / f"{kind}_{owner}.db").write_bytes(content)

    registry = registry_of(directory)

    for _ in range(2):
        assert shown(registry)["cacheworkers_load_seconds_count"] == 2.0


def test_what_is_no_process_s_is_left_alone(directory: Path) -> None:
    (directory / "counter_archive.db").write_bytes(b"")
    (directory / "notes.db").write_text("mine")

    forget_the_dead(directory)

    assert sorted(os.listdir(directory)) == ["counter_archive.db", "notes.db"]
