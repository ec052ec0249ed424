"""SQLAlchemy's own ORM suite with every mapped class watched: no row loses its tags, no test changes its outcome.

The suite does not come with the package: pip fetches the source distribution of the version that is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from cacheworkers.testing import Postgres, Valkey

pytestmark = pytest.mark.heavy

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
def postgres_url() -> Iterator[str]:
    with Postgres() as server:
        url = server.create_database("suite")
        engine = create_engine(url)
        with engine.begin() as connection:
            for schema in ("test_schema", "test_schema_2"):  # which the suite expects
                connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        engine.dispose()
        yield url


def outcomes(suite: Path, report: Path, *options: str, **environment: str) -> dict[str, str]:
    """Run the suite; return test -> "passed", "failed" or "skipped"."""
    command = [sys.executable, "-m", "pytest", "test/orm", "-q", "-p", "no:cacheprovider", "--maxfail=10000"]
    subprocess.run(
        [*command, f"--junitxml={report}", *options], cwd=suite, env={**os.environ, **environment}, capture_output=True
    )
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        state = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = state
    return found


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_orm_suite_passes_under_a_watch(
    suite: Path, store: Valkey, tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    options = [] if database == "sqlite" else ["--dburi", str(request.getfixturevalue("postgres_url"))]
    plain = outcomes(suite, tmp_path / "plain.xml", *options)

    report = tmp_path / "report.json"
    watched = outcomes(
        suite,
        tmp_path / "watched.xml",
        *options,
        "-p",
        "sqlalchemy_suite_plugin",
        PYTHONPATH=str(Path(__file__).parent),
        SUITE_REDIS=store.url,
        SUITE_REPORT=str(report),
    )

    found: dict[str, Any] = json.loads(report.read_text())
    changed = [name for name, state in plain.items() if state == "passed" and watched.get(name) != "passed"]
    assert [name for name in changed if not any(each in name for each in BY_DESIGN)] == []
    assert found["broken"] == [] and found["untagged"] == []
    assert found["counts"]["changed rows"] > 10_000
