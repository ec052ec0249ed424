"""Stand-ins for the base images of docker-compose.yml, where none can be pulled: Debian's packages, and wheels.

Needs root, debootstrap and a Docker engine.  `python -m tests.compose.standins` makes the images and prints what
docker-compose.yml is to be given in the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "python3,python3-venv,ca-certificates,redis-server,postgresql,procps"
#: Environment of docker compose -> the stand-in's image, and how it differs from the base.
IMAGES = {
    "BASE": ("cacheworkers-standin-python", ()),
    "VALKEY_IMAGE": ("cacheworkers-standin-valkey", ()),
    "POSTGRES_IMAGE": ("cacheworkers-standin-postgres", ('ENTRYPOINT ["/postgres-standin.sh"]',)),
}


def environment() -> dict[str, str]:
    """Return what docker-compose.yml is to be given."""
    return {name: image for name, (image, _) in IMAGES.items()} | {"PIP_OPTIONS": "--no-index --find-links /wheels"}


def are_made() -> bool:
    """Return whether all images are there."""
    return all(
        subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0
        for image, _ in IMAGES.values()
    )


def make(root: Path) -> None:
    """Make the images from a root file system that is made in a directory, or lies there already."""
    if not (root / "usr").exists():
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)], check=True)
    for name in ("server", "cli"):
        (root / "usr" / "local" / "bin" / f"valkey-{name}").unlink(missing_ok=True)
        (root / "usr" / "local" / "bin" / f"valkey-{name}").symlink_to(f"/usr/bin/redis-{name}")
    shutil.copy(Path(__file__).with_name("postgres-standin.sh"), root / "postgres-standin.sh")
    os.chmod(root / "postgres-standin.sh", 0o755)
    lock = ["--requirement", str(ROOT / "requirements" / "app.lock"), "setuptools>=77", "wheel"]
    lock.append("async-timeout")  # redis-py wants it below Python 3.11.3, and Debian has 3.11.2
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--python-version", "3.11", "--only-binary", ":all:"]
    subprocess.run([*words, "--dest", str(root / "wheels"), *lock], check=True)
    for image, changes in IMAGES.values():
        options = [word for change in changes for word in ("--change", change)]
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["docker", "import", *options, "-", image], stdin=tar.stdout, check=True)


def main() -> int:
    """Make what is missing, and print the environment."""
    if not are_made():
        with tempfile.TemporaryDirectory() as directory:
            make(Path(os.environ.get("STANDIN_ROOT", directory)))
    for name, value in environment().items():
        print(f"export {name}={value!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
