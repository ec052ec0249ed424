"""The reference describes everything there is."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest

import cacheworkers
from cacheworkers import Config, Policy, errors, events
from cacheworkers.core.keys import Keyspace
from cacheworkers.ops.cli import main

from . import shell
from .blocks import ROOT, pages

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import drawing
import tables

REFERENCE = ROOT / "docs" / "reference"
API = (REFERENCE / "api.md").read_text()
#: Methods that build no key, and attributes that are no key.
NO_KEYS = {
    "call_in",
    "call_of",
    "entries",
    "learn_shards",
    "namespace",
    "own_tag_shards",
    "patterns_of",
    "shard_of",
    "shards",
    "tag_of",
}


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_every_table_is_on_a_page(name: str) -> None:
    """A table that no page shows documents nothing."""
    shown = [page.name for page in REFERENCE.glob("*.md") if name in tables.tables_of(page.read_text())]

    assert len(shown) == 1


@pytest.mark.parametrize("page", sorted(path.name for path in REFERENCE.glob("*.md")))
def test_tables_are_as_the_code_is_now(page: str) -> None:
    """The pages can be read as files; `make reference` writes them again."""
    text = (REFERENCE / page).read_text()

    assert text == tables.current(text), "run: make reference"


def test_every_setting_says_what_it_is() -> None:
    """Each field of Config and Policy has a row with its default and a meaning."""
    for owner, table in ((Config, tables.settings()), (Policy, tables.policy())):
        for field in dataclasses.fields(owner):
            assert re.search(rf"^\| `{field.name}` \| `.+` \| .{{8,}} \|$", table, re.MULTILINE), field.name


DEFAULTS = {field.name: field.default for field in (*dataclasses.fields(Policy), *dataclasses.fields(Config))}
#: A setting with its value behind it: `wait_for` (2 s), `batch_size` (100), `negative_for` alone, 10 seconds.
QUOTED = re.compile(
    r"`(?:Config\.|Policy\.)?(\w+)`(?: \(|,? (?:alone, )?(?=[\d.,]+ (?:s|seconds|ms|MiB)\b))"
    r"([\d.,]+)(?: (ms|MiB))?\b(?! to )"
)
UNITS = {"": 1.0, "ms": 0.001, "MiB": 1024.0**2}


def quoted_in(text: str) -> list[tuple[str, float]]:
    """Return the settings that a text gives a value for, each with it, in seconds and bytes."""
    found = [match for match in QUOTED.finditer(text) if match[1] in DEFAULTS]
    return [(match[1], float(match[2].rstrip(".,").replace(",", "")) * UNITS[match[3] or ""]) for match in found]


def test_defaults_that_a_sentence_quotes_are_those_of_the_code() -> None:
    """The tables are generated; sentences are not.  A value that is no default is said in other words."""
    quoted = [(page, *each) for page in pages() for each in quoted_in((ROOT / page).read_text())]

    assert [each for each in quoted if each[2] != DEFAULTS[each[1]]] == []
    assert {"wait_for", "l1_for", "negative_for", "store_timeout", "bulkhead"} <= {name for _, name, _ in quoted}
    assert quoted_in("for `l1_for` (4 s), at most `l1_bytes` (64 MiB)") == [("l1_for", 4.0), ("l1_bytes", 67108864.0)]


@pytest.mark.parametrize("page", pages())
def test_settings_and_metrics_that_a_sentence_names_exist(page: str) -> None:
    """What was renamed or deleted is named nowhere."""
    text = (ROOT / page).read_text()
    metrics = set(re.findall(r"`(cacheworkers_\w+)`", (REFERENCE / "metrics.md").read_text()))
    exempt = {"cacheworkers_outbox", "cacheworkers_outbox_id_seq", "cacheworkers_unwatched"}
    fixtures = {"cacheworkers_redis_url", "cacheworkers_database_url", "cacheworkers_start_workers"}

    assert {name for name in re.findall(r"`Config\.(\w+)", text) if not hasattr(Config(), name)} == set()
    assert {name for name in re.findall(r"`Policy\.(\w+)", text) if not hasattr(Policy(), name)} == set()
    assert set(re.findall(r"`(cacheworkers_\w+)[`{]", text)) - metrics - exempt - fixtures == set()


def test_every_event_says_what_happened() -> None:
    """Each event has a row, with each of its fields."""
    classes = {value for value in vars(events).values() if isinstance(value, type) and issubclass(value, events.Event)}
    table = tables.event_table()

    assert set(tables.event_classes()) == classes - {events.Event}
    for each in tables.event_classes():
        fields = ", ".join(f"`{name}`" for name in each.__struct_fields__) or "none"
        assert re.search(rf"^\| `{each.__name__}` \| {re.escape(fields)} \| .{{8,}} \|$", table, re.MULTILINE), each


def test_every_error_says_when() -> None:
    """Each error has a row with what else it is."""
    table = tables.error_table()

    for name, each in vars(errors).items():
        if name in cacheworkers.__all__:
            assert re.search(rf"^\| `{name}` \| `{each.__bases__[0].__name__}`.* \| .{{8,}} \|$", table, re.MULTILINE)


def test_every_command_has_a_section() -> None:
    """Each command has its line, what it does, and its options."""
    text = tables.commands()

    for name, command in main.commands.items():
        assert f"## {name}\n\n`cacheworkers --app APP {name}" in text
        assert all(f"`{option}`" in text for each in command.params for option in each.opts if option.startswith("--"))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_teaches_by_example(name: str) -> None:
    """Its help has lines to be typed, which the command line takes; all but what has nothing to choose."""
    examples = [
        line.partition("cacheworkers ")[1] + line.partition("cacheworkers ")[2]
        for text in tables.paragraphs_of(main.commands[name])
        if text.startswith("\b\n")
        for line in text.splitlines()[1:]
    ]

    assert examples or name in ("drain", "gc")
    for line in examples:
        shell.check(re.split(r" [|&]|\)", line)[0], set())


def test_every_public_name_is_documented() -> None:
    """What `import cacheworkers` has is on the API page, or among the errors."""
    documented = {path for path in tables.tables_of(API) if path not in tables.TABLES}
    errors_listed = {f"cacheworkers.{each.__name__}" for each in tables.error_classes()}

    assert {f"cacheworkers.{name}" for name in cacheworkers.__all__} - {"cacheworkers.__version__"} <= (
        documented | errors_listed
    )


@pytest.mark.parametrize("owner", ["Cache", "Loader", "BatchLoader", "Load", "AsyncLoad", "WarmJob"])
def test_every_method_is_documented(owner: str) -> None:
    """The page has all that users call, and each has a docstring to show."""
    section = tables.api.described(f"cacheworkers.{owner}")
    documented = getattr(cacheworkers, owner)
    names = [name for name in dir(documented) if not name.startswith("_")]

    assert section in API
    assert all(getattr(documented, name).__doc__ for name in names)
    assert [name for name in names if not re.search(rf"`(?:{owner}\.)?{name}`", section)] == []


def test_what_public_methods_return_is_documented() -> None:
    """A class of the library that a signature gives back has its place on the page: what it has can be looked up."""
    lines = re.findall(r" -> (.*): \.\.\.$", API, re.MULTILINE)
    returned = {name for line in lines for name in re.findall(r"\b[A-Z]\w+", line)}
    shown = {name.rpartition(".")[2] for name in re.findall(r"^### `([\w.]+)`$", API, re.MULTILINE)}
    of_python = {
        "None",
        "NoReturn",
        "Any",
        "Self",
        "Mapping",
        "Callable",
        "AbstractContextManager",
        "Generator",
        "Response",
    }
    elsewhere = {"GarbageCollected", "DeclareLoader", "DeclareBatchLoader", "LoaderSpec", "Sequence"}  # events; inside

    assert {"Explanation", "Invalidation", "Triggers"} <= returned
    assert returned - shown - of_python - elsewhere == set()


def test_a_member_is_shown_with_what_its_docstring_says() -> None:
    """Signature, parameters and errors, the async twin beside the sync one."""
    text = tables.api.described("cacheworkers.Cache")
    invalidate = text.partition("#### `Cache.invalidate`, `Cache.ainvalidate`")[2].partition("####")[0]

    assert '    mode: Mode = "hard",\n' in invalidate
    assert "- `dry_run`: invalidate nothing;" in invalidate
    assert "- `InvalidationIncomplete`: the store failed;" in invalidate
    assert "`Cache.ainvalidate`\n\n```" in text and "\ndef ainvalidate" not in text
    assert "- `age: float`: seconds since its load began." in tables.api.described("cacheworkers.Read")
    assert "As of `Load`: `tag`" in tables.api.described("cacheworkers.AsyncLoad")


def test_every_key_is_documented() -> None:
    """The table of keys has each that a Keyspace can build, its parameters in capitals, and no other."""
    keys = Keyspace("cw")
    built = set()
    for name in set(dir(keys)) - NO_KEYS:
        value = getattr(keys, name)
        if name.startswith("_") or name.endswith(("_prefix", "_pattern")):
            continue
        if callable(value):
            wanted = value.__code__.co_varnames[1 : value.__code__.co_argcount]
            value = value(*(0 if each == "shard" else each.upper() for each in wanted))
        built.update(value if isinstance(value, tuple) else (value,))

    documented = re.findall(r"^\| `(cw:[^`]+)` \|", (REFERENCE / "keys.md").read_text(), re.MULTILINE)

    assert sorted(documented) == sorted(built)


def test_a_diagram_has_what_its_text_says() -> None:
    """Participants, messages and notes are drawn; anything else is refused, not left out."""
    text = (
        "sequenceDiagram\nparticipant a as one\nparticipant b\na->>b: x < 1\nb-->>a: y\na->>a: z\nNote over a,b: n<br>m"
    )
    picture = drawing.svg(drawing.parse(text))

    assert [word for word in (">one<", ">b<", ">x &lt; 1<", ">y<", ">z<", ">n<", ">m<") if word not in picture] == []
    assert picture.count('class="head"') == 3
    assert picture.count("reply") == 1
    for wrong in ("graph LR", "sequenceDiagram\nloop ever", "sequenceDiagram\nparticipant a\na->>b: x"):
        with pytest.raises(drawing.DiagramError):
            drawing.parse(wrong)


def test_periods_that_pages_give_are_the_defaults() -> None:
    """`wait_for` (2 s) in a text, say."""
    defaults = {field.name: field.default for kind in (Policy, Config) for field in dataclasses.fields(kind)}
    found = [
        (page, name, float(seconds))
        for page in pages()
        for name, seconds in re.findall(r"`(?:Config\.)?(\w+)` \(([\d.]+) s\b", (ROOT / page).read_text())
    ]

    assert found
    assert [each for each in found if defaults[each[1]] != each[2]] == []
