"""The Django page's project, when it grows: triggers that name what a later migration makes, in any database."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cacheworkers.testing import Postgres, Valkey

from .blocks import Block, blocks_of
from .prelude import DJANGO, DJANGO_MODELS, SCENES
from .running import Page

MODELS = f"""{DJANGO_MODELS}    brand_id = models.IntegerField(default=0)


class Review(models.Model):
    text = models.TextField()
"""
FAULTS = """
import django

from shop.cache import engine, triggers

django.setup()
with engine.connect() as connection:
    print(sorted(triggers.faults(connection)))
    assert connection.exec_driver_sql("SHOW application_name").scalar_one() == "mysite"  # Django's OPTIONS
    assert engine.url.database == "grown"
"""


def shell(commands: str) -> Block:
    return Block(DJANGO, 0, "bash", commands)


def file(path: str, text: str) -> Block:
    return Block(DJANGO, 0, "python", text, "file", path)


def prints(text: str) -> list[Block]:
    return [shell("python faults.py"), Block(DJANGO, 0, "text", text, "prints")]


def test_triggers_of_what_a_later_migration_makes(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new database, one that has the first migration, a test database, one that is kept, and the way back."""
    files = [block for block in blocks_of(DJANGO) if block.mark == "file"]
    [cache] = [block.text for block in files if block.says == "shop/cache.py"]
    grown = cache.replace('"category:{category_id}"]', '"brand:{brand_id}"], "shop_review": ["review:{id}"]')
    assert grown != cache
    testing = "python manage.py test --keepdb --noinput --settings mysite.test_settings"
    blocks = [
        *SCENES[DJANGO],
        *files,
        file("faults.py", FAULTS),
        shell(f"python manage.py migrate\n{testing}"),
        *prints("[]"),
        file("shop/models.py", MODELS),
        file("shop/cache.py", grown),
        shell("python manage.py makemigrations shop"),
        *prints("['shop_product', 'shop_review']"),
        shell(f"python manage.py migrate\npython manage.py makemigrations --check\n{testing}"),
        *prints("[]"),
        shell("python manage.py migrate shop 0001"),
        *prints("['shop_product', 'shop_review']"),
        shell("python manage.py migrate shop zero\npython manage.py migrate"),
        *prints("[]"),
        shell(testing.replace("--keepdb ", "")),
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHEWORKERS_STORE_TIMEOUT", "5")
    with contextlib.ExitStack() as servers:
        monkeypatch.setenv("REDIS_URL", servers.enter_context(Valkey()).url)
        monkeypatch.setenv("DATABASE_URL", postgres.create_database("grown"))
        page = servers.enter_context(Page(DJANGO, tmp_path, {}, is_session=True))
        for block in blocks:
            page.run_loads(block)
