"""The house: what the project's files say of each other stays true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from app.procfile import parse

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("dev.lock", "docs.lock")


def test_containers_run_the_processes_of_the_procfile() -> None:
    """docker-compose.yml has the Procfile's processes by the same names, and starts each by its line there."""
    processes = set(parse((ROOT / "Procfile").read_text()))
    compose = (ROOT / "docker-compose.yml").read_text()

    services = set(re.findall(r"^  ([a-z-]+):$", compose.partition("\nservices:\n")[2], re.MULTILINE))

    assert services == processes | {"valkey", "broker", "postgres", "seed"}
    assert set(re.findall(r"command: python -m app\.procfile ([a-z]+)$", compose, re.MULTILINE)) == processes


@pytest.mark.compose
def test_docker_compose_takes_the_file(docker_compose: str) -> None:
    """Whatever is set; and each container has a metrics directory of its own: files there are named by process id."""
    words = [docker_compose, "--file", str(ROOT / "docker-compose.yml"), "config"]
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}

    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    built = {name: service for name, service in services.items() if "build" in service}
    assert set(built) == {*parse((ROOT / "Procfile").read_text()), "seed"}
    for name, service in built.items():
        assert [service["environment"]["PROMETHEUS_MULTIPROC_DIR"]] == service["tmpfs"], name
    assert {name for name in built if "healthcheck" in built[name]} == set(built) - {"seed", "beat"}
    looks = [" ".join(built[name]["healthcheck"]["test"]) for name in ("miss", "rest")]
    assert all("env -u PROMETHEUS_MULTIPROC_DIR celery" in look for look in looks), "each look would leave its files"


def test_one_process_of_the_procfile_starts_alone(tmp_path: Path) -> None:
    """`python -m app.procfile NAME` becomes the command, with the environment filled in."""
    (tmp_path / "Procfile").write_text("greet: GREETING=hello printenv GREETING WHOM\n")
    words = [sys.executable, "-m", "app.procfile"]
    env = {"PATH": "/usr/bin:/bin", "WHOM": "you", "PYTHONPATH": str(ROOT)}

    done = subprocess.run([*words, "greet"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    unknown = subprocess.run([*words, "shout"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert done.stdout == "hello\nyou\n"
    assert unknown.returncode == 1
    assert "NAME is one of greet" in unknown.stderr


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_versions_and_nothing_else(lock: str) -> None:
    """Development installs exact versions, from wherever pip is set up to look."""
    lines = (ROOT / "requirements" / lock).read_text().splitlines()

    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []


def test_every_dependency_is_locked() -> None:
    """What pyproject.toml asks for has a version in the lock; but for the peers that a benchmark can do without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "bench"}
    documentation = extras.pop("docs")
    asked = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]

    assert {_name(each) for each in asked} - {"cacheworkers"} <= set(_locked("dev.lock"))
    assert {_name(each) for each in [*project["dependencies"], *documentation]} <= set(_locked("docs.lock"))


def test_locks_agree() -> None:
    """The documentation is made with the versions that the suite has run."""
    tested, documented = (_locked(lock) for lock in LOCKS)

    assert {name: (tested[name], documented[name]) for name in tested.keys() & documented.keys()} == {
        name: (tested[name], tested[name]) for name in tested.keys() & documented.keys()
    }


def test_every_package_is_shipped() -> None:
    """The wheel has every folder of the library, its scripts and its type marker."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "cacheworkers").rglob("*.py")}

    assert set(tool["packages"]) == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert tool["package-data"] == {"cacheworkers": ["py.typed"], "cacheworkers.store.commands": ["lua/*.lua"]}


def _locked(lock: str) -> dict[str, str]:
    """Return the versions in a lock, by name."""
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    return {_name(line): line.partition("==")[2] for line in lines}


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return found[0].lower().replace("_", "-").replace(".", "-")
