"""A release, tried: `make release` builds wheel and sdist, installs them into empty environments, and uses them.

Nothing is uploaded.  The wheel is installed bare and with each extra; the sdist once.  Tried are the import, a read and
an invalidation on a server where one can be had, the command line, and that what is missing is named with its extra.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What a bare installation does: no server is asked.
BARE = """
import asyncio
from cacheworkers import Cache, Config, Load, __version__
cache = Cache(Config(redis_url="redis://127.0.0.1:1/0"))

@cache.loader(fresh_for=60, tags=("product:{product_id}",))
def product(load: Load, product_id: int) -> dict[str, int]:
    return {"id": product_id}

assert product.get(42) == {"id": 42}  # without a store each process loads for itself
assert asyncio.run(product.aget(43)) == {"id": 43}
assert cache.call("product", 42) == "product[42]"
cache.close()
print(__version__)
"""
#: Extra -> what it makes possible, on one line.
EXTRAS = {
    "postgres": "import psycopg; from cacheworkers.sql.triggers import postgres_triggers",
    "pydantic": "import pydantic; from cacheworkers.core import pydantic_codec",
    "metrics": "from cacheworkers.ops.metrics import Metrics; Metrics()",
    "starlette": "import cacheworkers.web.starlette",
    "flask": "import cacheworkers.web.flask",
    "flower": "import flower",
    "otel": "import cacheworkers.ops.tracing",
    "embedded": "from cacheworkers.testing import Valkey; Valkey().__enter__().__exit__(None, None, None)",
}
#: Files without which the wheel is no use.
NEEDED = ("cacheworkers/py.typed", "cacheworkers/store/commands/lua/write.lua", "LICENSE", "entry_points.txt")


def main() -> None:
    """Build, look inside, install and use; the first thing that is wrong ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=sorted(EXTRAS), help="which to try; all of them by default")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "release", help="a directory for it all")
    options = parser.parse_args()
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would put what was deleted since into the wheel
    shutil.rmtree(options.work, ignore_errors=True)
    dist = options.work / "dist"
    dist.mkdir(parents=True)
    wheel, sdist = built(dist)
    version = wheel.name.split("-")[1]
    check_contents(wheel, sdist)
    check_changelog(version)
    check_extras()
    for name, archive in (("bare", wheel), ("sdist", sdist)):
        python = installed(options.work / name, str(archive))
        assert ran(python, BARE).strip() == version
        check_missing(python)
        check_types(python)
        say(f"{name}: installed and used")
    for extra in options.extras:
        python = installed(options.work / extra, f"{wheel}[{extra}]")
        ran(python, EXTRAS[extra])
        say(f"[{extra}]: installed and used")
    say(f"cacheworkers {version} can be released: {wheel.name}, {sdist.name}; nothing was uploaded")


def built(dist: Path) -> tuple[Path, Path]:
    """Build wheel and sdist with the build backend that pyproject.toml names."""
    code = (
        "import sys; from setuptools import build_meta as backend\n"
        "where = sys.argv[1]; backend.build_sdist(where); backend.build_wheel(where)"
    )
    subprocess.run([sys.executable, "-c", code, str(dist)], cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Both hold what is needed, every package of the project, and no test."""
    names = zipfile.ZipFile(wheel).namelist()
    for each in NEEDED:
        assert any(name.endswith(each) for name in names), f"{wheel.name} lacks {each}"
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "cacheworkers").rglob("__init__.py")}
    missing = packages - {name.rpartition("/")[0] for name in names}
    assert not missing, f"{wheel.name} lacks {sorted(missing)}: name them in pyproject.toml"
    foreign = [name for name in names if not name.startswith("cacheworkers")]
    assert not foreign, f"{wheel.name} holds {foreign[:3]}"
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("pyproject.toml") for name in archive.getnames())


def check_changelog(version: str) -> None:
    """The version has its heading."""
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in headings, f"CHANGELOG.md has no heading for {version}"


def check_extras() -> None:
    """Each extra that users may install is tried."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    users = set(declared) - {"all", "dev", "docs"}
    assert users == set(EXTRAS), f"not tried: {sorted(users ^ set(EXTRAS))}"


def check_missing(python: Path) -> None:
    """What needs an extra that is not there says which it is; psycopg and pydantic are the user's own imports."""
    for extra in ("metrics", "starlette", "flask", "otel", "embedded"):
        done = subprocess.run([python, "-c", EXTRAS[extra]], cwd=python.parent, capture_output=True, text=True)
        assert done.returncode == 1 and f"cacheworkers[{extra}]" in done.stderr, done.stderr


def check_types(python: Path) -> None:
    """User code, its mistakes included, is to mypy and pyright what it is to be, by the types that were installed."""
    folder = python.parent / "user_code"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "typing" / "public.py", folder / "user_code.py")
    (folder / "pyrightconfig.json").write_text('{"reportUnnecessaryTypeIgnoreComment": "error"}')
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "user_code.py"]
    checkers = [mypy]
    if npx := shutil.which("npx"):
        checkers.append([npx, "--yes", "pyright", "--pythonpath", str(python)])
    else:
        say("pyright: not run, for there is no npx")
    for words in checkers:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def installed(where: Path, what: str) -> Path:
    """Install something into an empty environment, and return its interpreter."""
    venv.create(where, with_pip=True)
    python = where / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what], check=True)
    return python


def ran(python: Path, code: str) -> str:
    """Run code far from this directory, so that what is installed is what is used."""
    done = subprocess.run([python, "-c", code], cwd=python.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def say(text: str) -> None:
    """Print a line now."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
