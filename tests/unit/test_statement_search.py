"""Statements that a watch would refuse are listed with their places, and prose is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cacheworkers import Cache, Config
from cacheworkers.ops.output import as_json
from cacheworkers.ops.statements_command import statements
from cacheworkers.sql.watch.statement_search import refused_statements

CODE = '''"""Update product pages."""
from sqlalchemy import text

PRICE = "UPDATE product SET price = 2"
READ = "SELECT * FROM product FOR UPDATE"


def delete(session, table):
    """Delete from product what is old."""
    session.execute(text(f"""
        DELETE FROM product AS {table}
        WHERE id = 1"""))
    session.execute(text("UPDATE other SET x = 1"))
'''
SQL = """-- reprice
UPDATE product
SET price = 3;

SELECT 1;
TRUNCATE product;
"""
LOG = """2030-01-01 LOG:  statement: UPDATE product SET price = 1
2030-01-01 INFO sqlalchemy.engine.Engine DELETE FROM product WHERE product.id = %(id_1)s
2030-01-01 LOG:  update of product pages is done
2030-01-01 LOG:  execute <unnamed>: CALL reprice()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(CODE)
    (tmp_path / "reprice.sql").write_text(SQL)
    (tmp_path / "notes.txt").write_text("UPDATE product")
    (tmp_path / "broken.py").write_text("UPDATE product (")
    return tmp_path


def found(path: Path) -> set[str]:
    return {each.where.rsplit("/", 1)[1] for each in refused_statements([path], ["product"], "postgresql")}


def test_code_and_sql_files_of_a_folder(code: Path) -> None:
    assert found(code) == {"shop.py:4", "shop.py:10", "reprice.sql:1", "reprice.sql:6"}


MODELS = """
class Product(Base):
    __tablename__ = "product"

class Other(Base):
    __tablename__ = "other"

product_table = sa.Table("product", metadata)
"""
CALLS = """
session.execute(update(Product).values(price=1))
session.execute(sa.delete(models.Product).where(models.Product.id > 7))
session.execute(product_table.insert().from_select(["id"], rows))
session.query(Product).filter(Product.price > 1).update({"price": 1})
session.bulk_insert_mappings(Product, rows)
connection.execute(insert(Product.__table__), rows)
session.execute(update(Other).values(price=1))
session.delete(product)
prices.update(Product=1)
"""


def test_calls_that_change_a_class_or_a_table(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "shop.py").write_text(CALLS)

    assert found(tmp_path) == {f"shop.py:{line}" for line in range(2, 8)}


def test_a_class_that_other_code_maps(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(CALLS)

    listed = refused_statements([tmp_path / "shop.py"], ["product"], classes={"Product": "product"})

    assert {each.where.rsplit(":", 1)[1] for each in listed} == {"2", "3", "5", "6", "7"}


def test_a_log(tmp_path: Path) -> None:
    (tmp_path / "postgres.log").write_text(LOG)

    assert found(tmp_path / "postgres.log") == {"postgres.log:1", "postgres.log:2", "postgres.log:4"}


def test_the_command_ends_with_status_2_and_says_where(code: Path) -> None:
    cache = Cache(Config())
    done = CliRunner().invoke(statements, [str(code), "--table", "product"], obj=(cache, as_json))
    cache.close()

    assert done.exit_code == 2
    assert "reprice.sql:6" in done.output


def test_without_tables_it_asks_for_them(code: Path) -> None:
    cache = Cache(Config())
    done = CliRunner().invoke(statements, [str(code)], obj=(cache, as_json))
    cache.close()

    assert done.exit_code == 2 and "give --table" in done.output
