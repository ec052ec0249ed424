"""The command line: what it says, in text and JSON, and how it ends."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from forked import heed_signals

from app.up import free_port
from cacheworkers import Cache, Config
from cacheworkers.ops.cli import main
from cacheworkers.ops.output import as_text
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

MODULE = """
from cacheworkers import Cache, Config, Load
cache = Cache(Config.from_env(store_timeout=5.0, namespace={namespace!r}))
wrong = 1

@cache.loader(tags=("n:{{n}}", "all"), fresh_for=300)
def number(load: Load, n: int) -> int:
    return n * 10
"""
#: The same loader in a process whose broker and database nobody serves.
AWAY = """
from celery import Celery
from sqlalchemy import MetaData, Table, create_engine
from sqlalchemy.orm import sessionmaker
from cacheworkers import Cache, Config, Load
sessions = sessionmaker(create_engine("postgresql+psycopg://127.0.0.1:1/shop"))
celery = Celery("shop", broker="redis://127.0.0.1:1/0")
cache = Cache(Config.from_env(store_timeout=5.0, namespace={namespace!r}), celery=celery, sessions=sessions)
cache.watch(sessions, {{Table("product", MetaData()): lambda row: ()}})

@cache.loader(tags=("n:{{n}}", "all"), fresh_for=300)
def number(load: Load, n: int) -> int:
    return load.session.connection() and n
"""


TWO = """
from cacheworkers import Cache, Config
def fails():
    {}['DSN']
def create_app(kind=""):
    return [Cache(Config.from_env(namespace="one")), Cache(Config.from_env(namespace="two"))]
"""
#: An application around the cache: its loader is declared, and its sessions bound, by the factory.
FACTORY = """
from celery import Celery
from sqlalchemy import MetaData, Table, create_engine
from sqlalchemy.orm import sessionmaker
from cacheworkers import Cache, Config, Load
sessions = sessionmaker()
celery = Celery("shop", broker="redis://127.0.0.1:1/0")
cache = Cache(Config.from_env(store_timeout=5.0, namespace={namespace!r}), celery=celery, sessions=sessions)
cache.watch(sessions, {{Table("product", MetaData()): lambda row: ()}})

class App:
    cache = cache
    def __init__(self, times=10):
        sessions.configure(bind=create_engine("sqlite:///shop.db"))
        @cache.loader(tags=("n:{{n}}", "all"), fresh_for=300)
        def number(load: Load, n: int) -> int:
            return n * times
    def __call__(self, environ, start_response):
        ...
"""
#: Web modules of it, in the ways of Flask, `uvicorn --factory`, WSGI servers, and with a name of its own.
WEB = """
from layout import App
def create_app(times=10):
    return App(times)
"""
WSGI = """
from web import create_app
application = create_app()
"""


class Done(NamedTuple):
    """What a command has printed, and its status."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, in a directory with a module that has a cache, imported again each time."""
    namespace = f"cli{os.getpid()}-{tmp_path.name[-20:].lower()}"[:32]
    (tmp_path / "shop.py").write_text(MODULE.format(namespace=namespace))
    (tmp_path / "away.py").write_text(AWAY.format(namespace=namespace))
    monkeypatch.setenv("REDIS_URL", valkey.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(*words: str, app: str = "shop:cache", text: str = "") -> Done:
        own = {path.stem for path in tmp_path.glob("*.py")}
        importlib.invalidate_caches()
        others = {name: sys.modules.pop(name) for name in own & sys.modules.keys()}  # another test's, of the same name
        try:
            done = CliRunner().invoke(main, ["--app", app, *words], input=text, prog_name="cacheworkers")
        finally:
            for name in own & sys.modules.keys():
                del sys.modules[name]
            sys.modules.update(others)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def warm(cli: Run, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand and one numbers are stored, by the same module in this process."""
    monkeypatch.setenv("REDIS_URL", valkey.url)
    shop: dict[str, Any] = {"__name__": "shop"}
    exec((tmp_path / "shop.py").read_text(), shop)
    shop["number"].get_many(range(1, 1002))
    shop["cache"].report_accesses()
    shop["cache"].close()


def parsed(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_explains_gets_and_lists(cli: Run, warm: None) -> None:
    found = parsed(cli("--json", "explain", "number[7]"))
    assert (found["freshness"], found["verdict"]) == ("fresh", "serve it from the store")
    assert cli("explain", "number[7]").stdout.startswith("number[7]: serve it from the store\n")
    assert cli("get", "number[7]").stdout == "70\n"
    assert parsed(cli("--json", "tag", "n:7")) == [{"call": "number[7]"}]
    assert len(parsed(cli("--json", "hot", "number", "--limit", "3"))) == 3
    assert "number[" in cli("hot", "number").stdout


def test_it_invalidates_after_a_question(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "invalidate", "all", "--dry-run")) == {"seq": 0, "entries": 1001}
    for answer in ("n\n", ""):
        refused = cli("invalidate", "all", text=answer)
        assert refused.returncode == 1 and "1,001 entries" in refused.stdout
        assert "nothing was invalidated; give --yes" in refused.stderr
    assert parsed(cli("--json", "invalidate", "n:7"))["entries"] == 1
    assert cli("get", "number[7]").returncode == 1
    assert parsed(cli("--json", "invalidate", "all", "--yes"))["entries"] == 1000


def test_an_unknown_tag_is_refused_and_nothing_is_changed(cli: Run, warm: None) -> None:
    """Its sequence does not move, nor does what a known tag beside it has; --yes is for what only loads name."""
    before = parsed(cli("--json", "explain", "number[7]"))

    for words in (("tag", "m:7"), ("invalidate", "n:7", "m:7"), ("invalidate", "m:7", "--dry-run")):
        done = cli(*words)
        assert done.returncode == 1
        assert "unknown tag 'm:7'" in done.stderr and "loaders declare all, n:{n}" in done.stderr
    done = cli("invalidate", "number[7]")
    assert "'number[7]' is a call, not a tag: nothing was invalidated" in done.stderr
    assert done.stderr.endswith("its tags are n:7, all: cacheworkers invalidate n:7\n")

    after = parsed(cli("--json", "explain", "number[7]"))
    assert (after["freshness"], after["tags"]) == ("fresh", before["tags"])
    assert parsed(cli("--json", "invalidate", "m:7", "--yes"))["entries"] == 0


def test_a_tag_that_nothing_has_now_is_known_all_the_same(cli: Run) -> None:
    """A load may be under way that will have it."""
    assert parsed(cli("--json", "tag", "n:5000")) == []
    assert parsed(cli("--json", "invalidate", "n:5000"))["seq"] > 0


def test_json_may_stand_behind_every_command(cli: Run, warm: None) -> None:
    for words in (
        ("explain", "number[7]"),
        ("get", "number[7]"),
        ("tag", "n:7"),
        ("hot", "number"),
        ("invalidate", "n:8"),
        ("warm", "number", "7"),
        ("gc",),
        ("inspect", "--sample", "1"),
        ("stats",),
        ("doctor", "--before-start"),
    ):
        done = cli(*words, "--json")
        assert json.loads(done.stdout) is not None, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("drain",), "the outbox at postgresql+psycopg://127.0.0.1:1/shop cannot be drained: connection failed"),
        (("warm", "number", "5000"), "the broker does not answer"),
    ],
)
def test_a_broker_or_a_database_that_is_away_is_a_message(
    cli: Run, warm: None, words: tuple[str, ...], message: str
) -> None:
    """Immediately, with status 1, and without a traceback."""
    done = cli(*words, app="away:cache")

    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_it_warms_from_a_file_and_names_bad_lines(cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text('1\n2\n"x"\n2\n\n{\n')

    done = cli("--json", "warm", "number", "--file", str(file))

    assert done.returncode == 1
    assert "line 3: " in done.stderr and "line 6: " in done.stderr
    found = json.loads(done.stdout)
    assert (found["calls"], found["loaded"], found["bad"], found["duplicates"]) == (2, 2, 2, 1)
    again = json.loads(cli("--json", "warm", "number", "--file", "-", text="1\n2\nnumber[3]\n").stdout)
    assert (again["fresh"], again["loaded"]) == (2, 1)


def test_it_warms_what_was_hot_and_gates_a_deploy(cli: Run, warm: None) -> None:
    cli("invalidate", "all", "--yes")

    found = parsed(cli("--json", "warm", "number", "--hot", "50", "--min-fresh", "90%", "--max-rate", "1000"))

    assert found["calls"] == 50
    assert 0.9 <= found["share"] <= 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("number",), "give one source"),
        (("number", "1", "--hot", "3"), "give one source"),
        (("nobody", "1"), "declared are number"),
        (("number", "1", "--min-fresh", "120%"), "share from 0% to 100%"),
        (("number", "1", "--max-rate", "-1"), "max_rate must be more than 0"),
        (("number", "--file", "nowhere.txt"), "'nowhere.txt': No such file"),
        (("number", "x"), "key 1: 'x' is neither arguments as JSON, 42 or \"lamp\", nor a call of number\n"),
    ],
)
def test_a_warm_up_that_cannot_be_says_why(cli: Run, words: tuple[str, ...], message: str) -> None:
    done = cli("warm", *words)

    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_stats_show_what_is_there(cli: Run, warm: None) -> None:
    found = parsed(cli("--json", "stats"))

    assert found["store"]["keys"] >= 1001
    assert found["loaders"][0]["loader"] == "number"
    assert found["away"] == {}
    assert re.search(r"uptime s +.*memory bytes", cli("stats").stdout), "a number has its unit"
    assert re.search(r"^loader +access_score +calls +hottest .*\nnumber +", cli("stats").stdout, re.MULTILINE)


def test_stats_name_who_is_away(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEWORKERS_REDIS_URL", f"redis://127.0.0.1:{free_port(20000)}/0")

    done = cli("--json", "stats")

    assert done.returncode == 1
    assert "store" in json.loads(done.stdout)["away"]


def test_the_exporter_is_asked_and_a_second_one_on_its_port_is_refused(
    cli: Run, tmp_path: Path, valkey: Valkey
) -> None:
    port = free_port(9900)
    words = [str(Path(sys.executable).parent / "cacheworkers"), "-A", "shop:cache", "exporter", "--port", str(port)]
    env = {**os.environ, "REDIS_URL": valkey.url}
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, preexec_fn=heed_signals)
    assert process.stderr is not None
    assert str(port) in process.stderr.readline().decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert b'cacheworkers_up{server="store"} 1.0' in answer.read()

    second = cli("exporter", "--port", str(port))
    foreign = cli("exporter", "--address", "192.0.2.1")
    beyond = cli("exporter", "--port", "65536")

    assert second.returncode == 1 and "another exporter may be there" in second.stderr
    assert foreign.returncode == 1 and "address and port must be ours" in foreign.stderr
    assert beyond.returncode == 2 and "65536 is not in the range" in beyond.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stderr.close()


def test_it_is_a_command_of_celery_too(tmp_path: Path, valkey: Valkey) -> None:
    (tmp_path / "celeryshop.py").write_text(
        "import os\nfrom celery import Celery\nfrom cacheworkers import Cache, Config, Load\n"
        "app = Celery('celeryshop', broker=os.environ['REDIS_URL'])\n"
        "cache = Cache(Config.from_env(namespace='celeryshop', store_timeout=5.0), celery=app)\n"
        "@cache.loader()\ndef thing(load: Load, n: int) -> int:\n    return n\n"
    )
    env = {**os.environ, "REDIS_URL": valkey.url, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "celery", "-A", "celeryshop", "cacheworkers", "--json", "explain", "thing[1]"]

    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["call"] == "thing[1]"


def test_it_inspects_and_sweeps(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "inspect", "--sample", "50", "--rate", "10000"))["sampled"] == 50
    assert "members" in parsed(cli("--json", "gc"))


def test_a_record_has_each_of_a_list_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Another field has their number, or a reader counts them."""
    as_text({"failed": 2, "failures": ["number[0]", "number[1]"], "others": []})

    assert capsys.readouterr().out == "failed    2\nfailures  number[0]\n          number[1]\nothers    -\n"


def test_a_store_that_is_away_is_said_once(tmp_path: Path, cli: Run) -> None:
    """The error says it; the log, which nobody has configured, does not say it too."""
    env = {**os.environ, "REDIS_URL": f"redis://127.0.0.1:{free_port(20000)}/0"}
    words = [str(Path(sys.executable).parent / "cacheworkers"), "-A", "shop:cache", "explain", "number[1]"]

    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "is unavailable" in done.stderr


def test_the_meter_says_how_many_in_a_million(cli: Run, warm: None) -> None:
    assert parsed(cli("--json", "inspect", "--sample", "5", "--rate", "10000"))["per_million"] == 0.0


def test_an_inspection_without_a_database_says_how_to_name_one(cli: Run, warm: None, tmp_path: Path) -> None:
    """And shows the first line of why, not all that SQLAlchemy says."""
    bound = (tmp_path / "away.py").read_text()
    (tmp_path / "unbound.py").write_text(bound.replace("sessionmaker(create", "sessionmaker() or (create"))

    done = cli("inspect", "--sample", "2", "--rate", "10000", app="unbound:cache")

    assert done.returncode == 1
    assert "UnboundExecutionError" in done.stdout and len(done.stdout.splitlines()) == 6
    assert "are bound to no engine: with -A name the module that calls" in done.stderr
    assert "`cacheworkers -A 'shop.web:create_app()'`" in done.stderr


def test_help_needs_no_cache(cli: Run) -> None:
    for words in (("inspect", "--help"), ("drain", "-h")):
        done = cli(*words, app="")
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "app", "message"),
    [
        (("explain", "nobody[1]"), "shop:cache", "declared are number"),
        (("explain", "Number[1]"), "shop:cache", "no loader is named 'Number'; declared are number"),
        (("explain", "number[1]"), "nowhere:cache", "No module named 'nowhere'"),
        (("explain", "number[1]"), "shop:wrong", "is a int"),
        (("drain",), "shop:cache", "this cache watches no sessions, so it has no outbox to drain"),
        (("explain", "number[1]"), "broken:cache", "broken cannot be imported: KeyError: 'DSN', in broken.py, line 2"),
        (("explain", "number[1]"), "unset:cache", "unset cannot be imported: ConfigError: l1_for must be >= 0"),
        (("explain", "number[1]"), "typo:cache", "typo cannot be imported: SyntaxError: "),
        (("explain", "number[1]"), "needs:cache", "needs cannot be imported: ModuleNotFoundError: No module named 'no"),
        (("explain", "number[1]"), ":cache", "--app must be module:name of a Cache, or of an application or factory"),
        (("explain", "number[1]"), "./shop.py", "or factory with one, got './shop.py'"),
        (("explain", "number[1]"), "two:create_app", "comes with 2 Caches: name it as module:name"),
        (("explain", "number[1]"), "typing:cast", "'typing:cast' comes with no Cache"),
        (("explain", "number[1]"), "two:fails", "two:fails fails: KeyError: 'DSN', in two.py, line 4"),
        (("explain", "number[1]"), "two:create_app(1, 2, 3)", "got 'two:create_app(1, 2, 3)': create_app() takes"),
        (("explain", "number[1]"), "two:create_app().cache", "is no name, and no call such as create_app()"),
        (("explain", "number[1]"), "two:create_app(name)", "got 'two:create_app(name)': malformed node"),
    ],
)
def test_errors_are_messages(cli: Run, words: tuple[str, ...], app: str, message: str, tmp_path: Path) -> None:
    """Also those of the module that makes the cache: what it says, and in which of its lines."""
    (tmp_path / "broken.py").write_text("settings = {}\ncache = settings['DSN']\n")
    (tmp_path / "unset.py").write_text("from cacheworkers import Cache, Config\ncache = Cache(Config(l1_for=-1))\n")
    (tmp_path / "typo.py").write_text("def (\n")
    (tmp_path / "needs.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "two.py").write_text(TWO)

    done = cli(*words, app=app)

    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("include", "says"), [("catalog", ""), ("broken", "KeyError('DSN')")])
def test_loaders_are_those_of_the_modules_that_workers_import(
    cli: Run, tmp_path: Path, include: str, says: str
) -> None:
    """`include` of the Celery app names them; one that fails is a remark, for not every command needs loaders."""
    made = 'Cache(Config.from_env(store_timeout=5.0, namespace="layout"), celery=celery)'
    (tmp_path / "layout.py").write_text(
        f"from celery import Celery\nfrom cacheworkers import Cache, Config\n"
        f"celery = Celery('layout', broker='redis://127.0.0.1:1/0', include=['{include}'])\ncache = {made}\n"
    )
    (tmp_path / "catalog.py").write_text("from layout import cache\n\n@cache.loader\ndef three(load): return 3\n")
    (tmp_path / "broken.py").write_text("settings = {}\ncache = settings['DSN']\n")

    done = cli("explain", "three[]", app="layout:cache")

    assert (done.returncode, bool(done.stdout)) == (bool(says), not says)
    assert done.stdout.startswith("three[]: " if not says else "")
    assert says in done.stderr and bool(done.stderr) == bool(says)


@pytest.fixture
def factory(cli: Run, tmp_path: Path) -> str:
    """The modules of an application with a factory; the namespace of its cache."""
    namespace = f"factory{os.getpid()}-{tmp_path.name[-18:].lower()}"[:32]
    (tmp_path / "layout.py").write_text(FACTORY.format(namespace=namespace))
    (tmp_path / "web.py").write_text(WEB)
    (tmp_path / "wsgi.py").write_text(WSGI)
    return namespace


@pytest.mark.parametrize(
    "app", ["web:create_app()", "web:create_app", "web:create_app(10)", "wsgi:application", "wsgi"]
)
def test_an_application_or_its_factory_is_taken_for_its_cache(cli: Run, factory: str, app: str) -> None:
    done = cli("explain", "number[1]", app=app)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("number[1]: load it in the reader, after at most ")


def test_a_factory_that_fails_costs_what_it_would_have_declared(cli: Run, factory: str, tmp_path: Path) -> None:
    """Where its database is away, doctor has to say so."""
    (tmp_path / "failing.py").write_text("import layout\ndef create_app():\n    layout.App(1)\n    1 / 0\n")

    done = cli("explain", "number[1]", app="failing:create_app()")

    assert done.returncode == 0 and done.stdout.startswith("number[1]: ")
    assert "failing:create_app() fails: ZeroDivisionError: division by zero, in failing.py, line 4" in done.stderr


def test_a_celery_app_is_taken_for_the_cache_that_is_bound_to_it(cli: Run, factory: str) -> None:
    done = cli("hot", "number", app="layout:celery")

    assert "no loader is named 'number'; declared are none" in done.stderr


@pytest.mark.parametrize("words", [("explain", "number[1]"), ("hot", "number"), ("warm", "number", "1")])
def test_a_loader_of_another_module_is_named_with_it(
    cli: Run, factory: str, words: tuple[str, ...], valkey: Valkey
) -> None:
    """Which processes declare it is in the store."""
    web = Cache(Config(redis_url=valkey.url, namespace=factory))
    web.internals.ports.store.note_marks(["loader number of shop.catalog"], time.time()).run()
    web.close()

    done = cli(*words, app="layout:cache")

    assert done.returncode == 1
    assert "running processes declare it in shop.catalog: give `-A shop.catalog`" in done.stderr


def test_rows_that_name_no_call_are_counted_and_the_rest_goes_on(cli: Run, tmp_path: Path) -> None:
    """Another loader's call, too many arguments, a wrong type, no JSON; one call in three ways is one."""
    file = tmp_path / "numbers.txt"
    file.write_text('1\nother[2]\n[1, 2]\n1.5\n{"n"\nnumber[1]\n"1"\n2\n')

    done = cli("--json", "warm", "number", "--file", str(file))

    found = json.loads(done.stdout)
    assert (found["calls"], found["loaded"], found["bad"], found["duplicates"]) == (2, 2, 4, 2)
    for line in (2, 3, 4, 5):
        assert f"line {line}: " in done.stderr
    assert "other[2]" in done.stderr
    assert """'{"n"' is neither arguments as JSON, 42 or "lamp", nor a call of number\n""" in done.stderr
    assert done.returncode == 1


def test_a_line_that_is_no_text_is_a_bad_row_and_the_rest_goes_on(cli: Run, tmp_path: Path) -> None:
    """A file may begin with a byte order mark, and end its lines as Windows does."""
    file = tmp_path / "numbers.txt"
    file.write_bytes(b"\xef\xbb\xbf1\r\n\xff\xfe\r\n\x00\n2\r\n")

    done = cli("--json", "warm", "number", "--file", str(file))

    found = json.loads(done.stdout)
    assert (found["calls"], found["loaded"], found["bad"]) == (2, 2, 2)
    assert "line 2: b'\\xff\\xfe\\r\\n' is not UTF-8: invalid start byte at byte 0" in done.stderr
    assert "line 3: " in done.stderr
    assert done.returncode == 1


def test_a_bad_row_and_one_that_comes_again_are_counted(cli: Run) -> None:
    done = cli("--json", "warm", "number", "--file", "-", text="1\n2\nnull\n2\n")

    found = json.loads(done.stdout)
    assert (found["loaded"], found["bad"], found["duplicates"]) == (2, 1, 1)
    assert "line 3: " in done.stderr


def test_what_fails_is_named_and_is_no_success(cli: Run, tmp_path: Path) -> None:
    module = (tmp_path / "shop.py").read_text().replace("return n * 10", "return 10 // n")
    (tmp_path / "failing.py").write_text(module)

    done = cli("--json", "warm", "number", "0", "1", "2", app="failing:cache")

    found = json.loads(done.stdout)
    assert (done.returncode, found["loaded"], found["failed"], found["failures"]) == (1, 2, 1, ["number[0]"])
    assert cli("warm", "number", "0", "1", "2", "--min-fresh", "60%", app="failing:cache").returncode == 0


@pytest.mark.parametrize(
    ("rows", "until", "status", "bad"),
    [("{\n", "95%", 1, 1), ("", "95%", 1, 0), ("", "0%", 0, 0), ("{\n", "0%", 1, 1)],
)
def test_a_share_of_nothing_is_no_success(cli: Run, rows: str, until: str, status: int, bad: int) -> None:
    """A list that came out empty, or wrong, opens no deploy's gate, unless nothing was asked for."""
    done = cli("--json", "warm", "number", "--file", "-", "--min-fresh", until, text=rows)

    found = json.loads(done.stdout)
    assert (done.returncode, found["calls"], found["bad"], found["share"]) == (status, 0, bad, 0.0)
    assert "no row names a call of number" in done.stderr


def test_a_new_system_where_nothing_is_hot_is_warm(cli: Run) -> None:
    """Its first deploy is not to fail."""
    done = cli("warm", "number", "--hot", "100", "--min-fresh", "95%")

    assert done.returncode == 0
    assert "nothing of number is hot" in done.stderr


def test_what_is_fresh_no_more_at_the_end_is_no_success(cli: Run, tmp_path: Path) -> None:
    """A job that takes longer than its entries are fresh; of ten a second the last is two seconds behind."""
    module = (tmp_path / "shop.py").read_text().replace("fresh_for=300", "fresh_for=1, stale_for=0, jitter=0")
    (tmp_path / "brief.py").write_text(module)
    numbers = [str(n) for n in range(25)]

    done = cli("--json", "warm", "number", *numbers, "--max-rate", "10", "--min-fresh", "100%", app="brief:cache")

    found = json.loads(done.stdout)
    # Where nobody looks for a second, one is gone before it was seen, and in the end counts as failed.
    assert found["loaded"] + found["fresh"] + found["failed"] == 25
    assert found["share"] < 1
    assert done.returncode == 1
    assert "no longer fresh: this took" in done.stderr and "they are fresh for 1 s; raise --max-rate" in done.stderr


def test_warming_without_celery_says_that_no_worker_is_asked(cli: Run) -> None:
    """As a deploy's gate it would pass all the same."""
    done = cli("warm", "number", "1")

    assert done.returncode == 0 and "this cache has no Celery app" in done.stderr


def test_warming_without_workers_says_so_immediately_and_loads_nothing(cli: Run, tmp_path: Path) -> None:
    """In a deploy's script, of which nobody watches the output: it names the queue, and what to start."""
    with Valkey() as broker:
        module = (tmp_path / "shop.py").read_text()
        celery = f"from celery import Celery\ncache = Cache(celery=Celery(broker={broker.url!r}), config="
        module = module.replace("cache = Cache(", celery, 1).replace("namespace=", "queue_prefix='served', namespace=")
        (tmp_path / "served.py").write_text(module)

        done = cli("warm", "number", "1", "2", "--wait-for-workers", "0.1", app="served:cache")

        assert done.returncode == 1
        # The app has no name under which Celery could find it.
        command = "celery -A MODULE worker -I served -Q served.miss,served.revalidate,served.warm,served.upkeep"
        assert f"no worker that answers consumes served.warm: start `{command}`" in done.stderr
        assert "nothing was loaded" in done.stderr
        assert done.stdout == ""


def test_a_warm_up_that_was_killed_goes_on_where_it_was(cli: Run, tmp_path: Path, valkey: Valkey) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("".join(f"{n}\n" for n in range(300)))
    words = [str(Path(sys.executable).parent / "cacheworkers"), "--app", "shop:cache", "warm", "number"]
    words += ["--file", str(file), "--max-rate", "1"]  # so slow that it cannot be done before it is killed
    process = subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "REDIS_URL": valkey.url})
    wait_until(lambda: cli("get", "number[0]").returncode == 0, 60)
    process.kill()
    process.wait()

    found = parsed(cli("--json", "warm", "number", "--file", str(file)))

    assert 0 < found["fresh"] < 300
    assert (found["calls"], found["failed"], found["share"]) == (300, 0, 1.0)
    assert found["fresh"] + found["loaded"] == 300


def test_what_was_hot_is_warmed_under_a_new_version(cli: Run, warm: None, tmp_path: Path) -> None:
    """With the old version still serving; an invalidation by either reaches both."""
    module = (tmp_path / "shop.py").read_text().replace("fresh_for=300", "fresh_for=300, version=2")
    (tmp_path / "deployed.py").write_text(module)

    found = parsed(cli("--json", "warm", "number", "--hot", "50", app="deployed:cache"))

    assert (found["calls"], found["loaded"], found["share"]) == (50, 50, 1.0)
    hottest = parsed(cli("--json", "hot", "number", "--limit", "1"))[0]["call"]
    number = hottest[len("number[") : -1]
    assert cli("get", f"number@2[{number}]", app="deployed:cache").returncode == 0
    assert parsed(cli("--json", "invalidate", f"n:{number}"))["entries"] == 2
    assert cli("get", f"number@2[{number}]", app="deployed:cache").returncode == 1


def test_the_exporter_ends_when_its_container_is_stopped(cli: Run, tmp_path: Path, valkey: Valkey) -> None:
    """SIGTERM is to a container what Ctrl-C is to a terminal."""
    words = [str(Path(sys.executable).parent / "cacheworkers"), "-A", "shop:cache", "exporter", "--port", "0"]
    env = {**os.environ, "REDIS_URL": valkey.url}
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None and b"metrics at" in process.stderr.readline()

        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0


def test_a_list_that_is_cut_says_so(cli: Run, warm: None) -> None:
    """Two of a thousand are not taken for all; on stderr, so that JSON stays JSON."""
    cut, whole = cli("--json", "tag", "all", "--limit", "2"), cli("--json", "tag", "n:7", "--limit", "1")

    assert len(parsed(cut)) == 2
    assert "more than 2 entries have it (--limit)" in cut.stderr and "invalidate all --dry-run" in cut.stderr
    assert len(parsed(whole)) == 1 and whole.stderr == ""
