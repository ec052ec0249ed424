"""The command line: what it says, in text and JSON, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.up import free_port
from cacheworkers.testing import Valkey

MODULE = """
from cacheworkers import Cache, Config, Load
cache = Cache(Config.from_env(store_timeout=5.0, namespace={namespace!r}))
wrong = 1

@cache.loader(tags=("n:{{n}}", "all"), fresh_for=300)
def number(load: Load, n: int) -> int:
    return n * 10
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path, valkey: Valkey) -> Run:
    """Run the command in a directory with a module that has a cache."""
    (tmp_path / "shop.py").write_text(MODULE.format(namespace=f"cli{os.getpid()}-{tmp_path.name[-20:].lower()}"[:32]))

    def run(*words: str, app: str = "shop:cache", text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).parent / "cacheworkers"), "--app", app, *words],
            cwd=tmp_path,
            env={**os.environ, "REDIS_URL": valkey.url},
            capture_output=True,
            text=True,
            input=text,
        )

    return run


@pytest.fixture
def warm(cli: Run, tmp_path: Path, valkey: Valkey) -> None:
    """A thousand and one numbers are stored."""
    code = "import shop; shop.number.get_many(range(1, 1002)); shop.cache.tell_heat(); shop.cache.close()"
    env = {**os.environ, "REDIS_URL": valkey.url}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_explains_gets_and_lists(cli: Run, warm: None) -> None:
    found = parsed(cli("--json", "explain", "number[7]"))
    assert (found["freshness"], found["verdict"]) == ("fresh", "serve it from the store")
    assert "verdict" in cli("explain", "number[7]").stdout
    assert cli("get", "number[7]").stdout == "70\n"
    assert parsed(cli("--json", "tag", "n:7")) == [{"call": "number[7]"}]
    assert len(parsed(cli("--json", "hot", "number", "--most", "3"))) == 3
    assert "number[" in cli("hot", "number").stdout


def test_it_invalidates_after_a_question(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "invalidate", "all", "--dry-run")) == {"seq": 0, "entries": 1001}
    refused = cli("invalidate", "all", text="n\n")
    assert refused.returncode == 1 and "1,001 entries" in refused.stdout
    assert parsed(cli("--json", "invalidate", "n:7"))["entries"] == 1
    assert cli("get", "number[7]").returncode == 1
    assert parsed(cli("--json", "invalidate", "all", "--yes"))["entries"] == 1000


def test_it_warms_from_a_file_and_names_bad_lines(cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text('1\n2\n"x"\n2\n\n{\n')

    strict = cli("warm", "number", "--file", str(file), "--strict")
    assert strict.returncode == 1 and "nothing was loaded" in strict.stderr
    done = cli("--json", "warm", "number", "--file", str(file))

    assert done.returncode == 1
    assert f"{file}:3:" in done.stderr and f"{file}:6:" in done.stderr
    found = json.loads(done.stdout)
    assert (found["calls"], found["loaded"], found["bad"], found["duplicates"]) == (2, 2, 2, 1)
    again = json.loads(cli("--json", "warm", "number", "--file", "-", text="1\n2\nnumber[3]\n").stdout)
    assert (again["fresh"], again["loaded"]) == (2, 1)


def test_it_warms_what_was_hot_and_gates_a_deploy(cli: Run, warm: None) -> None:
    cli("invalidate", "all", "--yes")

    found = parsed(cli("--json", "warm", "number", "--hot", "50", "--until", "90%", "--max-rate", "1000"))

    assert found["calls"] == 50
    assert 0.9 <= found["share"] <= 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("number",), "give one source"),
        (("number", "1", "--hot", "3"), "give one source"),
        (("nobody", "1"), "declared are number"),
        (("number", "1", "--until", "120%"), "share from 0% to 100%"),
        (("number", "1", "--max-rate", "-1"), "max_rate must be more than 0"),
        (("number", "--file", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("number", "--sql", "SELECT 1"), "no session that this cache watches"),
        (("number", "x"), "key 1:"),
    ],
)
def test_a_warm_up_that_cannot_be_says_why(cli: Run, words: tuple[str, ...], message: str) -> None:
    done = cli("warm", *words)

    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_stats_tell_what_is_there(cli: Run, warm: None) -> None:
    found = parsed(cli("--json", "stats"))

    assert found["store"]["keys"] >= 1001
    assert found["loaders"][0]["loader"] == "number"
    assert found["away"] == {}
    assert "number" in cli("stats").stdout, "no terminal: one look"


def test_stats_name_who_is_away(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEWORKERS_REDIS_URL", f"redis://127.0.0.1:{free_port(20000)}/0")

    done = cli("--json", "stats")

    assert done.returncode == 1
    assert "store" in json.loads(done.stdout)["away"]


def test_stats_go_on_on_a_terminal_until_told_to_end(cli: Run, warm: None, tmp_path: Path, valkey: Valkey) -> None:
    """On a real pseudo-terminal: it shows the table, again and again, and Ctrl-C ends it well."""
    ours, theirs = pty.openpty()
    words = [str(Path(sys.executable).parent / "cacheworkers"), "-A", "shop:cache", "stats", "--every", "0.1"]
    env = {**os.environ, "REDIS_URL": valkey.url, "TERM": "xterm"}
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while shown.count(b"commands/s") < 2:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    os.close(ours)


def test_the_exporter_is_asked_and_a_second_one_on_its_port_is_refused(
    cli: Run, tmp_path: Path, valkey: Valkey
) -> None:
    port = free_port(9900)
    words = [str(Path(sys.executable).parent / "cacheworkers"), "-A", "shop:cache", "exporter", "--port", str(port)]
    env = {**os.environ, "REDIS_URL": valkey.url}
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert str(port) in process.stderr.readline().decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b'cacheworkers_answers{server="store"} 1.0' in answer.read()

    second = cli("exporter", "--port", str(port))

    assert second.returncode == 1 and "another exporter may be there" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stderr.close()


def test_it_completes_and_is_a_command_of_celery_too(cli: Run, tmp_path: Path, valkey: Valkey) -> None:
    assert "_CACHEWORKERS_COMPLETE" in cli("completion", "bash", app="nowhere").stdout
    (tmp_path / "celeryshop.py").write_text(
        "import os\nfrom celery import Celery\nfrom cacheworkers import Cache, Config, Load\n"
        "app = Celery('celeryshop', broker=os.environ['REDIS_URL'])\n"
        "cache = Cache(Config.from_env(namespace='celeryshop', store_timeout=5.0), celery=app)\n"
        "@cache.loader()\ndef thing(load: Load, n: int) -> int:\n    return n\n"
    )
    env = {**os.environ, "REDIS_URL": valkey.url, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "celery", "-A", "celeryshop", "cacheworkers", "--json", "explain", "thing[1]"]

    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["call"] == "thing[1]"


def test_it_inspects_and_sweeps(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "inspect", "--sample", "50", "--rate", "10000"))["sampled"] == 50
    assert "members" in parsed(cli("--json", "sweep"))


def test_the_meter_says_how_many_in_a_million(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "inspect", "--sample", "5", "--rate", "10000"))["per_million"] == 0.0


def test_help_needs_no_cache(cli: Run) -> None:
    for words in (("inspect", "--help"), ("drain", "-h")):
        done = cli(*words, app="")
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "app", "message"),
    [
        (("inspect", "--rate", "0"), "shop:cache", "rate must be more than 0 loads a second, got 0.0"),
        (("inspect", "--sample", "0"), "shop:cache", "sample must be at least 1 entry, got 0"),
        (("inspect", "--grace", "-1"), "shop:cache", "grace must be 0 seconds or more, got -1.0"),
        (("explain", "nobody[1]"), "shop:cache", "declared are number"),
        (("explain", "number[1]"), "nowhere:cache", "No module named 'nowhere'"),
        (("explain", "number[1]"), "shop:wrong", "is a int"),
        (("drain",), "shop:cache", "engine"),
    ],
)
def test_errors_are_messages(cli: Run, words: tuple[str, ...], app: str, message: str) -> None:
    done = cli(*words, app=app)

    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
