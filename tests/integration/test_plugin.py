"""The fixtures that pytest finds by itself, in a suite that is not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import redis

from cacheworkers.testing import Postgres, Valkey

SUITE = """
import redis, sqlalchemy

def test_both_answer(cacheworkers_redis_url, cacheworkers_database_url):
    assert redis.Redis.from_url(cacheworkers_redis_url).ping()
    with sqlalchemy.create_engine(cacheworkers_database_url).connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1
    print("used", cacheworkers_redis_url, cacheworkers_database_url)
"""


def run(directory: Path, **env: str) -> str:
    """Run the suite, and return its output."""
    (directory / "test_mine.py").write_text(SUITE)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEST_")}
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(words, cwd=directory, env={**kept, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_servers_of_the_session_s_own(tmp_path: Path) -> None:
    assert "used redis://127.0.0.1:" in run(tmp_path)


def test_a_server_with_a_password_is_ready_and_its_url_has_it() -> None:
    with Valkey(requirepass="p@ss word") as valkey, redis.Redis.from_url(valkey.url) as client:
        assert client.ping()


def test_servers_that_the_environment_names(tmp_path: Path, valkey: Valkey, postgres: Postgres) -> None:
    url = postgres.create_database("named")

    reported = run(tmp_path, TEST_REDIS_URL=valkey.url, TEST_DATABASE_URL=url)

    assert f"used {valkey.url} {url}" in reported
