"""SQLAlchemy's own ORM suite with every mapped class watched: no row loses its tags, no test changes its outcome.

The suite does not come with the package: pip fetches the source distribution of the version that is installed.  It runs
without and with a watch at the same time.  `-s` shows the rows of the table in docs/explanation/sqlalchemy_suite.md.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from cacheworkers.testing import Postgres, Valkey

pytestmark = pytest.mark.heavy

#: Longest run of the suite, seconds; it takes some ten minutes on two processors.
LIMIT = 3600
#: Tests that count every statement that an engine executes, in a listener of their own: the library's are among them.
BY_DESIGN = (
    "test_session.SessionStateTest::test_execution_options_flush_before_cursor_execute",
    "_no_pk_correct_exception",  # its listener fails at any statement but its own INSERT
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's directory."""
    path, wanted = tmp_path_factory.mktemp("sqlalchemy"), version("sqlalchemy")
    options = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", str(path)]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, f"sqlalchemy=={wanted}"], check=True)
    [archive] = path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(path, filter="data")
    return path / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def store() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def database_of(postgres: Postgres, name: str) -> str:
    """Return the URL of a new database with the schemas that the suite expects."""
    url = postgres.create_database(name)
    engine = create_engine(url)
    with engine.begin() as connection:
        for schema in ("test_schema", "test_schema_2"):
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    engine.dispose()
    return url


def outcomes(suite: Path, report: Path, *options: str, **environment: str) -> dict[str, str]:
    """Run the suite; return test -> "passed", "failed" or "skipped"."""
    command = [sys.executable, "-m", "pytest", "test/orm", "-q", "-p", "no:cacheprovider", "--maxfail=10000"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *options],
        cwd=suite,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        state = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = state
    return found


@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_the_orm_suite_passes_under_a_watch(
    suite: Path, store: Valkey, tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    faulthandler.cancel_dump_traceback_later()  # which ends a test that takes five minutes
    options: dict[str, list[str]] = {"plain": [], "watched": []}
    if database == "PostgreSQL":
        postgres = request.getfixturevalue("postgres")
        options = {name: ["--dburi", database_of(postgres, name)] for name in options}
    report = tmp_path / "report.json"
    watching = {
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))),
        "SUITE_REDIS": store.url,
        "SUITE_REPORT": str(report),
    }

    with ThreadPoolExecutor() as both:
        runs = [
            both.submit(outcomes, suite, tmp_path / "plain.xml", *options["plain"]),
            both.submit(
                outcomes,
                suite,
                tmp_path / "watched.xml",
                *options["watched"],
                "-p",
                "sqlalchemy_suite_plugin",
                **watching,
            ),
        ]
        plain, watched = (run.result() for run in runs)

    found: dict[str, Any] = json.loads(report.read_text())
    counts = found["counts"]
    changed = sorted(name for name in plain.keys() | watched.keys() if plain.get(name) != watched.get(name))
    by_design = [name for name in changed if any(each in name for each in BY_DESIGN)]
    numbers = [sum(state == "passed" for state in plain.values()), counts["flushes"], counts["changed rows"]]
    numbers += [counts.get("untagged rows", 0), len(changed) - len(by_design), len(by_design)]
    print(f"\n| SQLAlchemy {version('sqlalchemy')}, {database} | {' | '.join(f'{each:,}' for each in numbers)} |")
    assert [name for name in changed if name not in by_design] == []
    assert found["broken"] == [] and found["untagged"] == []
    assert counts["changed rows"] > 10_000
