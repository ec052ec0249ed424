"""The house: what the project's files say of each other stays true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import probe
from app.procfile import parse

ROOT = Path(__file__).resolve().parents[1]
#: Words of a private language, and what STYLE.md has instead.
BANNED = {
    r"at[ _]once": "immediately, or together",
    r"anew": "again",
    r"so many": "the number",
    r"hears?|hearing|heard": "receive",
    r"ears?": "tracking connection",
    r"told(?![ _]apart)|tells? (?:of|nobody|nothing)|telling": "report",
    r"baton": "hand-off",
    r"takes? in (?:a push|pushes|what)|taking in": "process",
}
#: Pages that quote them.
QUOTING = {"STYLE.md", "CHANGELOG.md", "test_house.py"}
SPEAKING = {".py", ".md", ".lua", ".js", ".html", ".yml", ".toml"}
LOCKS = ("app.lock", "deploy.lock", "dev.lock", "docs.lock")


def test_containers_run_the_processes_of_the_procfile() -> None:
    """docker-compose.yml has the Procfile's processes by the same names, and starts each by its line there."""
    processes = set(parse((ROOT / "Procfile").read_text()))
    compose = (ROOT / "docker-compose.yml").read_text()

    services = set(re.findall(r"^  ([a-z-]+):$", compose.partition("\nservices:\n")[2], re.MULTILINE))

    assert services - {"prometheus", "grafana"} == processes | {"valkey", "broker", "postgres", "seed"}
    assert set(re.findall(r"command: \[([a-z]+)\]$", compose, re.MULTILINE)) == processes


@pytest.mark.compose
def test_docker_compose_takes_the_file(docker_compose: str) -> None:
    """Whatever is set in the environment."""
    words = [docker_compose, "--file", str(ROOT / "docker-compose.yml"), "--profile=*", "config"]
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}

    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(_compose()["services"])


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def test_containers_come_back_keep_what_matters_and_are_seen_from_this_machine_alone() -> None:
    """Restart policies, volumes, limits, ports on loopback, no password in the file, one image, files of one's own."""
    services = _compose()["services"]
    shop = {name: service for name, service in services.items() if service.get("image") == "cacheworkers-shop"}

    assert set(shop) == {*parse((ROOT / "Procfile").read_text()), "seed"}
    assert {name for name, service in services.items() if service["restart"] != "unless-stopped"} == {"seed"}
    for name, service in shop.items():
        assert service["environment"]["PROMETHEUS_MULTIPROC_DIR"] in [
            each.partition(":")[0] for each in service["tmpfs"]
        ]
        assert service["init"] and service["read_only"] and service["mem_limit"] and service["stop_grace_period"], name
        assert name == "seed" or service["environment"]["PROCESS"] == name == service["command"][0]
    assert all("mem_limit" in services[name] for name in ("valkey", "broker"))
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert services["broker"]["volumes"] and services["postgres"]["volumes"]
    text = (ROOT / "docker-compose.yml").read_text()
    assert "PASSWORD: " not in text and not re.search(r"//[^@\s]*:[^@\s/]+@", text)


def test_the_image_is_small_unprivileged_and_probed() -> None:
    """Built apart, from the lock, without the tests; an init is its first process."""
    text = (ROOT / "Dockerfile").read_text()

    assert text.count("\nFROM ") == 2 and "\nCOPY --from=build" in text
    assert "--requirement requirements/app.lock" in text and "tests" not in text
    for words in (
        "USER 10001",
        "HEALTHCHECK",
        'ENTRYPOINT ["dumb-init"',
        "STOPSIGNAL SIGTERM",
        "ENV REMAP_SIGTERM=SIGQUIT",
    ):
        assert f"\n{words}" in text


def test_the_forge_tries_the_newest_and_the_oldest() -> None:
    """Its jobs run what can be run here, on the oldest Python and the newest that the package says it takes."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    *_, newest = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))

    ran = {}
    for job in workflow["jobs"].values():
        checkout, python, *steps = job["steps"]
        assert checkout["uses"].startswith("actions/checkout@") and python["uses"].startswith("actions/setup-python@")
        ran[steps[-1]["run"]] = python["with"]["python-version"]

    assert set(workflow) == {"name", True, "permissions", "jobs"} and set(workflow[True]) == {"push", "pull_request"}
    assert ran == {".ci/run": oldest, ".ci/run oldest": oldest, "make test-newest": newest}
    assert "test-newest" in " ".join(targets).split()


@pytest.mark.parametrize(
    ("arguments", "makes"), [([], "make test"), (["oldest"], "make test-oldest"), (["newest"], "")]
)
def test_ci_makes_one_target(arguments: list[str], makes: str, tmp_path: Path) -> None:
    """What it does not know it refuses, lest it were green for nothing."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho make "$@"\n')
    make.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    done = subprocess.run([ROOT / ".ci" / "run", *arguments], env=env, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == makes
    assert (done.returncode, "usage: .ci/run [oldest]" in done.stderr) == ((0, False) if makes else (2, True))


@pytest.mark.parametrize("name", ["config", "web", "workers", "single"])
def test_the_kubernetes_example_runs_the_same_processes(name: str) -> None:
    """Each Deployment starts a process of the Procfile, unprivileged, probed, with the image's volumes."""
    processes = parse((ROOT / "Procfile").read_text())
    for found in yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / f"{name}.yaml").read_text()):
        assert {"apiVersion", "kind", "metadata"} <= set(found)
        if found["kind"] != "Deployment":
            continue
        spec = found["spec"]["template"]["spec"]
        [container] = spec["containers"]
        [process] = container["args"]
        assert process in processes and {"name": "PROCESS", "value": process} in container["env"]
        assert spec["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
        assert container["livenessProbe"]["exec"]["command"] == ["python", "-m", "app.probe"]
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in spec["volumes"]}
        assert found["spec"]["selector"]["matchLabels"] == found["spec"]["template"]["metadata"]["labels"]


def test_units_of_systemd_start_the_same_processes() -> None:
    """One unit a process; what cannot be started by its name in the Procfile is a mistake."""
    processes = parse((ROOT / "Procfile").read_text())
    started = set()
    for path in (ROOT / "deploy" / "systemd").glob("*.service"):
        text = path.read_text()
        [process] = re.findall(r"^ExecStart=\S+ -m app\.procfile (\S+)$", text, re.MULTILINE)
        assert "Restart=always" in text, path.name
        started |= {"miss", "rest"} if process == "%i" else {process}

    assert started == set(processes) - {"page", "flower"}


@pytest.mark.parametrize("process", ["miss", "beat"])
def test_a_process_without_a_heartbeat_is_not_alive(
    process: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTBEAT_DIR", str(tmp_path))

    assert "no heartbeat" in (probe.why_not(process, 0.0) or "")
    probe.heartbeat_file(process).touch()
    touched_at = probe.heartbeat_file(process).stat().st_mtime
    assert probe.why_not(process, touched_at + 1.0) is None
    assert "s old" in (probe.why_not(process, touched_at + 100.0) or "")


def test_every_process_can_be_probed() -> None:
    assert set(probe.PATHS) | set(probe.SILENT_FOR) == set(parse((ROOT / "Procfile").read_text()))


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
    """What pyproject.toml asks for has a version in a lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    documentation = extras.pop("docs")
    asked = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]

    assert {_name(each) for each in asked} - {"cacheworkers"} <= set(_locked("dev.lock"))
    assert {_name(each) for each in [*project["dependencies"], *documentation]} <= set(_locked("docs.lock"))


def test_locks_agree() -> None:
    """The documentation is made with the versions that the suite has run."""
    tested = _locked("dev.lock")
    for lock in LOCKS:
        other = _locked(lock)
        both = tested.keys() & other.keys()
        assert {name: other[name] for name in both} == {name: tested[name] for name in both}, lock


def test_the_prose_is_the_fields_own() -> None:
    """What STYLE.md bans has not come back: neither in prose nor in a name."""
    folders = ("app", "benchmarks", "cacheworkers", "deploy", "docs", "monitoring", "tests")
    files = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    read = [path for path in files if path.suffix in SPEAKING and "_build" not in path.parts]
    assert len(read) > 400
    pattern = re.compile(rf"(?<![a-z])(?:{'|'.join(BANNED)})(?![a-z])", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in read
        if path.name not in QUOTING
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]

    assert found == [], f"say it in the field's words: {BANNED}"


def test_urls_of_databases_are_shown_by_one_function() -> None:
    """SQLAlchemy's own text of a URL hides no password that is in its query."""
    texts = {path.name: path.read_text() for path in (ROOT / "cacheworkers").rglob("*.py")}

    showing = [name for name, text in texts.items() if re.search(r"\burl!r|repr\([\w.]*\burl\b|render_as_string", text)]

    assert showing == ["connections.py"]


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
