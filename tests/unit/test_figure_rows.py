"""The table of all figures: what is asked for, how rows are arranged, and what becomes of a benchmark that fails."""

from __future__ import annotations

import io
import lzma
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import __main__ as whole
from benchmarks import figures, http, readme, runs, sheet
from benchmarks.apps.__main__ import Result, median
from benchmarks.runs import Failure
from benchmarks.sheet import Detail, Figure, Found, Row, Scale

ROOT = Path(__file__).resolve().parents[2]
EMPTY = f"# A project\n{readme.BEGIN}{readme.END}More.\n"
HIT = Row("a hit | in memory", "<= 7x", "0.2 us", "3.9x lru_cache", True)


def figure(section: str) -> Figure:
    return Figure(section, "some_module --large", lambda scale: Found([HIT]))


def shown(lines: list[sheet.Line]) -> str:
    console = Console(file=io.StringIO(), width=300, record=True)
    console.print(sheet.table(lines))
    return console.export_text()


def a_project(root: Path) -> None:
    """A README without figures, and the other page that it copies from."""
    (root / "README.md").write_text(EMPTY)
    (root / whole.DOCS).mkdir(parents=True)
    row = "| {} | {} | 1.3 | 2.4 | 0.0 | {} | 25 | 0 of 9 | 122 |\n"
    columns = ("requests/s", "p50", "p99 ms at the rate", "queries", "queries at a sale's start", "last answer ms")
    heads = f"|  | {' | '.join(columns)} | old reads | MB |\n|---|---:|\n"
    left_out = "| redis-py (threads) | left out: too old |  |  |  |  |  |  |  |\n"
    peers = [row.format("a peer (threads)", "5,783", 90), row.format("one more", "998", 1)]
    rows = [row.format("cacheworkers", "7,858", 1), *peers, left_out, row.format("no cache", "1,448", 200)]
    (root / whole.DOCS / "apps.md").write_text(heads + "".join(rows))


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Found | Failure]]:
    """What each benchmark finds, given beforehand instead of measured."""
    found: dict[str, Found | Failure] = {}
    monkeypatch.setattr(runs, "alone", lambda name, scale: found[name])
    yield found


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (HIT, "yes"),
        (HIT._replace(is_met=False), "no"),
        (HIT._replace(is_met=None), ""),
        (sheet.failed("hits", "ValueError: 7").rows[0], "failed"),
    ],
    ids=["met", "not met", "no aim", "failed"],
)
def test_a_row_says_whether_its_aim_is_met(row: Row, word: str) -> None:
    assert row.met == word


def test_a_section_is_named_once_and_its_rows_follow() -> None:
    lines = [
        line
        for section in ("Hits", "Hits", "Misses")
        for line in sheet.lines_of(figure(section), Found([HIT]), is_quick=False)
    ]

    rows = sheet.page(lines, [], "").splitlines()[8:]

    hit = r"| a hit \| in memory | <= 7x | 0.2 us | 3.9x lru_cache | yes | `python -m benchmarks.some_module --large` |"
    assert rows == ["| **Hits** | | | | | |", hit, hit, "| **Misses** | | | | | |", hit]


def test_details_are_below_the_table() -> None:
    page = sheet.page([], [Detail("Threads", ("read", "threads"), [("L1 hit", "32")])], "On 2 cores.")

    assert page.startswith("# The figures of cacheworkers\n")
    assert page.endswith("## Threads\n\n| read | threads |\n|---|---:|\n| L1 hit | 32 |\n")


def test_the_terminal_shows_brackets_as_they_are() -> None:
    """`product[42]` is no markup."""
    row = HIT._replace(what="product[bold]")

    assert "product[bold]" in shown(sheet.lines_of(figure("Hits"), Found([row]), is_quick=False))


def test_small_sizes_are_marked() -> None:
    [line] = sheet.lines_of(figure("Hits"), Found([HIT]), is_quick=True)

    assert line.row.what == "a hit | in memory (quick)"


def test_a_benchmark_that_fails_has_a_row_and_the_others_go_on(reported: dict[str, Found | Failure]) -> None:
    reported["hits"] = Failure("ConnectionError: refused", "Traceback")
    reported["race"] = Found([HIT], [Detail("Race", ("library",), [])], {"race.md": "text"})
    console = Console(file=io.StringIO(), width=200)

    lines, details, files = runs.run(["hits", "race"], Scale(), console)

    assert [(line.row.what, line.row.measured, line.row.met) for line in lines] == [
        ("hits", "failed: ConnectionError: refused", "failed"),
        ("a hit | in memory", "0.2 us", "yes"),
    ]
    assert ([detail.title for detail in details], files) == (["Race"], {"race.md": "text"})
    assert "Traceback" in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "2 of 2: race" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_command_fails_if_a_benchmark_did(reported: dict[str, Found | Failure]) -> None:
    """A missed aim is no failure."""
    reported["hits"] = Failure("ConnectionError: refused", "")
    reported["race"] = Found([HIT._replace(is_met=False)])

    assert whole.main(["--only", "race"]) == 0
    assert whole.main(["--only", "hits", "race"]) == 1


def test_nothing_is_written_of_a_part_unless_it_is_said_where(
    reported: dict[str, Found | Failure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported |= dict.fromkeys(figures.FIGURES, Found([HIT], files={"read_path.md": "hits"}))
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path)

    whole.main(["--only", "race"])
    whole.main(["--quick"])
    before = (tmp_path / "README.md").read_text()
    whole.main(["--only", "race", "--write-to", "here"])
    whole.main([])

    written = ["figures.md", "figures.svg", "read_path.md"]
    assert before == EMPTY
    assert (tmp_path / "README.md").read_text() == readme.current(tmp_path) != EMPTY
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == written
    assert sorted(path.name for path in (tmp_path / whole.DOCS).iterdir()) == ["apps.md", *written]


def test_the_readme_has_the_figures_that_benchmarks_have_written() -> None:
    """`python -m benchmarks.readme` writes them again."""
    assert (ROOT / "README.md").read_text() == readme.current()


def test_the_readme_s_rows_are_those_of_the_pages(
    reported: dict[str, Found | Failure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported |= dict.fromkeys(figures.FIGURES, Found([HIT, HIT._replace(measured="0.3 us")]))
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path)

    assert whole.main([]) == 0

    found = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("- ")]
    assert found[0] == r"- A hit \| in memory: **0.2 us**: `python -m benchmarks.stampede`"
    assert [line.split("`")[1] for line in found[1:]] == [
        f"python -m benchmarks.{figures.FIGURES[name].command}" for name in ("coherence", "hits", "soak")
    ]
    table = readme.cells_of((tmp_path / "README.md").read_text())
    assert table == [
        ["A product API, by who caches it", *readme.COLUMNS.values()],
        ["cacheworkers", "7,858", "2.4", "1", "25", "0 of 9"],
        ["a peer (threads)", "5,783", "2.4", "90", "25", "0 of 9"],
        ["one more", "998", "2.4", "1", "25", "0 of 9"],
        ["no cache", "1,448", "2.4", "200", "25", "0 of 9"],
    ]


def test_the_readme_keeps_its_figures_if_one_of_them_could_not_be_measured(
    reported: dict[str, Found | Failure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported |= dict.fromkeys(figures.FIGURES, Found([HIT])) | {"soak": Failure("OSError: no", "")}
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path)

    assert whole.main([]) == 1

    assert (tmp_path / "README.md").read_text() == EMPTY
    with pytest.raises(ValueError, match=r"figures.md has no row of `python -m benchmarks.soak"):
        readme.current(tmp_path)


def test_a_peer_s_row_has_the_median_of_its_rounds_and_all_its_old_reads() -> None:
    slow, fast, quiet = (
        Result("a peer", speed, p50, start_last=0.1, old=old, requests=100)
        for speed, p50, old in ((800.0, 0.003, 2), (3000.0, 0.001, 0), (2900.0, 0.002, 1))
    )
    failed = Result("a peer", why_not="it does not start")

    together = median([slow, failed, fast, quiet])

    assert (together.speed, together.p50, together.start_last) == (2900.0, 0.002, 0.1)
    assert together.cells[7] == "3 of 300"
    assert median([failed, failed]) is failed


def test_an_unknown_name_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        whole.main(["--only", "hits", "profits"])

    message = " ".join(capsys.readouterr().err.split())
    assert f"--only must be of {', '.join(figures.FIGURES)}; got profits" in message


def test_the_list_has_each_benchmark_and_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert whole.main(["--list"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(figures.FIGURES)
    assert all(
        line.endswith(f"python -m benchmarks.{figure.command}")
        for line, figure in zip(lines, figures.FIGURES.values(), strict=True)
    )


def test_sections_of_the_table_are_not_interrupted() -> None:
    sections = [figure.section for figure in figures.FIGURES.values()]

    assert sections == sorted(sections, key=sections.index)


def test_http_is_left_out_where_there_is_no_wrk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)

    [row] = figures.over_http(Scale()).rows

    assert (row.measured, row.met) == ("left out: wrk is not installed", "")
    with pytest.raises(FileNotFoundError, match="wrk is not installed"):
        http.measured(1, 1)


def test_benchmarks_run_in_processes_of_their_own(tmp_path: Path) -> None:
    """For real: one that works on a trace, and fails on one that is not there."""
    trace = tmp_path / "small.trace.xz"
    trace.write_bytes(lzma.compress(struct.pack(">4i", 7, 1, 7, 7)))
    words = [sys.executable, "-m", "benchmarks", "--quick", "--only", "l1-sizes", "--write-to", str(tmp_path)]

    works = subprocess.run([*words, "--trace", str(trace)], cwd=ROOT, capture_output=True, text=True, check=False)
    page = (tmp_path / "figures.md").read_text()
    fails = subprocess.run([*words, "--trace", "missing"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert works.returncode == 0, works.stderr
    assert "| small: hits of an L1 of 1,000 entries (quick) |  | 50.0% |" in page
    assert fails.returncode == 1
    assert "failed: FileNotFoundError" in (tmp_path / "figures.md").read_text()
