"""The command line: what it says, in text and JSON, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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

    done = cli("--json", "warm", "number", str(file))

    assert done.returncode == 1
    assert f"{file}:3:" in done.stderr and f"{file}:6:" in done.stderr
    assert json.loads(done.stdout)["looked"] == 2
    assert cli("warm", "number", str(file), "--strict").returncode == 1


def test_it_inspects_and_sweeps(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "inspect", "--sample", "50", "--rate", "10000"))["sampled"] == 50
    assert "members" in parsed(cli("--json", "sweep"))


@pytest.mark.parametrize(
    ("words", "app", "message"),
    [
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
