"""A Django application: its ORM is what changes and what loads; triggers and a drain invalidate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cacheworkers.testing import Valkey

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).with_name("django_shop.py")


def test_what_django_changes_is_invalidated(valkey: Valkey, database_url: str, tmp_path: Path) -> None:
    """In a process of its own: Django's settings are a process's."""
    env = {
        **os.environ,
        "CACHEWORKERS_REDIS_URL": valkey.url,
        "CACHEWORKERS_NAMESPACE": "django",
        "DATABASE_URL": database_url,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, str(APP)], env=env, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    ways = "create save update bulk_create bulk_update delete raw on_commit rollback view aview"
    assert done.stdout.split() == ways.split()
