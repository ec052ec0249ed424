"""The flash-sale page on the stack that `make up` starts: its stream, its actions, and in a browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.page import control
from app.page.control import Refused
from app.page.queries import count
from app.page.traffic import kind_of
from app.same_site import is_ours
from app.up import Addresses, running
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 120.0
PANELS = 6
#: Enough of the stack for a page: no workers, no Flower.
SMALL = ("web", "page")


class Stack:
    """One `python -m app.up`, with its output in a file."""

    def __init__(self, place: Path, *options: str, env: dict[str, str], procfile: Path = ROOT / "Procfile") -> None:
        self._data = place / "data"
        self._log = place / "up.log"
        self._words = [sys.executable, "-m", "app.up", "--data-dir", str(self._data), "--procfile", str(procfile)]
        self._words += ["--prepare", "python -m app.seed --products 300", *options]
        given = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        self._env = {**given, **env}
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with open(self._log, "wb") as out:
            self.process = subprocess.Popen(self._words, cwd=ROOT, env=self._env, stdout=out, stderr=out)

        def is_ready() -> bool:
            assert self.process.poll() is None, self.text
            return "ready; Ctrl-C ends it" in self.text and running(self._data) is not None

        wait_until(is_ready, WITHIN)
        there = running(self._data)
        assert there is not None
        self.here: Addresses = there

    @property
    def text(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def end(self) -> int:
        """End it as Ctrl-C does, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(WITHIN)

    def act(self, action: str, **headers: str) -> tuple[int, Any]:
        """Press a button; return status and answer."""
        request = urllib.request.Request(f"{self.here.page}/actions/{action}", method="POST", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=WITHIN) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield the stream's events."""
        with urllib.request.urlopen(f"{self.here.page}/events", timeout=WITHIN) as answer:
            event = ""
            for raw in answer:
                name, _, value = raw.decode().strip().partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    yield event, json.loads(value)

    def until(self, event: str, condition: Callable[[Any], Any], action: str = "") -> Any:
        """Return the first such event; with an action, pressed once the stream is open."""
        end, last = time.monotonic() + WITHIN, None
        with contextlib.closing(self.messages()) as messages:
            for number, (name, data) in enumerate(messages):
                if number == 0 and action:
                    status, answer = self.act(action)
                    assert status == 200, answer
                if name == event:
                    if condition(data):
                        return data
                    last = data
                if time.monotonic() > end:
                    break
        raise AssertionError(f"not seen in time; the last {event} was {last}; it said:\n{self.text[-3000:]}")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All that `make up` starts, on servers of its own."""
    place = tmp_path_factory.mktemp("page")
    made = Stack(place, env={})
    yield made
    made.end()


@pytest.fixture
def calm(stack: Stack) -> Iterator[Stack]:
    """The stack, without traffic before and after."""
    stack.act("idle")
    yield stack
    stack.act("idle")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Web process and page, on a store that `make up` is given."""
    place = tmp_path_factory.mktemp("small")
    lines = (ROOT / "Procfile").read_text().splitlines()
    procfile = place / "Procfile"
    procfile.write_text("\n".join(line for line in lines if line.split(":")[0] in SMALL) + "\n")
    with Valkey() as valkey:
        ports = ("--page-port", str(free_port()), "--warm", "0")
        made = Stack(place, *ports, env={"REDIS_URL": valkey.url}, procfile=procfile)
        yield made
        made.end()


# -- parts


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (b"cacheworkers; hit; ttl=297; detail=l1", "l1"),
        (b"cacheworkers; hit; ttl=12; detail=store", "store"),
        (b"cacheworkers; hit; ttl=-3; detail=l1", "stale"),
        (b"cacheworkers; fwd=stale; ttl=-3; detail=store", "stale"),
        (b"cacheworkers; fwd=miss; stored; ttl=300; detail=store", "miss"),
    ],
)
def test_cache_status_says_the_kind_of_a_hit(status: bytes, kind: str) -> None:
    """What RFC 9211 calls forwarded is a miss, what has a negative ttl was served stale."""
    assert kind_of(status) == kind


@pytest.mark.parametrize(
    ("host", "origin", "is_allowed"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("localhost:8080", "", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("127.0.0.1:8080", "https://elsewhere.example", False),
        ("127.0.0.1:8080", "http://127.0.0.1:9999", False),
        ("elsewhere.example:8080", "http://elsewhere.example:8080", False),
        ("127.0.0.1:8080", "null", False),
        ("", "", False),
    ],
)
def test_only_the_page_itself_may_press_its_buttons(host: str, origin: str, is_allowed: bool) -> None:
    """Another site's request has its own Origin; a name that it points here is its own Host."""
    assert is_ours(host, origin) is is_allowed


def test_postgres_counts_both_sides_apart(database_url: str) -> None:
    """The uncached twin's statement is known by its extra column."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE product (id int)"))
    before = count(engine)

    with engine.begin() as connection:
        for _ in range(3):
            connection.execute(text("SELECT product.id FROM product"))
        connection.execute(text("SELECT product.id, 1 AS uncached FROM product"))
    after = count(engine)
    engine.dispose()

    assert before is not None and after is not None
    assert after.source == "pg_stat_statements"
    assert (after.cached - before.cached, after.uncached - before.uncached) == (3, 1)


def test_without_the_extension_transactions_are_counted(database_url: str) -> None:
    """Where pg_stat_statements is missing, pg_stat_database is what Postgres has; with no database there is nothing."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DROP EXTENSION pg_stat_statements"))

    found = count(engine)
    engine.dispose()

    assert found is not None and found.source == "pg_stat_database"
    assert count(create_engine("postgresql+psycopg://postgres@/none?host=/nowhere")) is None


def test_what_make_up_did_not_start_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `make up` there is nobody to ask, and the refusal says so."""
    monkeypatch.delenv(control.VARIABLE, raising=False)

    with pytest.raises(Refused, match="not started by `make up`"):
        asyncio.run(control.ask("kill", "miss"))


# -- the stream and the actions


def test_the_page_s_address_comes_first(stack: Stack) -> None:
    """Of all addresses that `make up` prints."""
    addresses = re.findall(r"up +\| (\w+): +(?:http|redis|postgresql)", stack.text)

    assert addresses == ["Page", "API", "Flower", "Metrics", "Valkey", "Postgres"]


def test_the_exporter_shows_web_workers_queues_and_outbox_together(stack: Stack) -> None:
    """Whatever process counted it; and the web process shows the same."""
    with urllib.request.urlopen(f"{stack.here.web}/products/77", timeout=WITHIN) as answer:
        answer.read()

    def shown(url: str) -> str:
        with urllib.request.urlopen(url, timeout=WITHIN) as answer:
            return str(answer.read().decode())

    expected = (
        r'cacheworkers_reads_total\{.*loader="product".*\} [1-9]',
        r'cacheworkers_load_seconds_count\{.*outcome="stored",where="worker"\} [1-9]',
        r'cacheworkers_queue_messages\{queue="cw.miss"\} ',
        r"cacheworkers_outbox_rows \d",
        r'cacheworkers_up\{server="outbox"\} 1',
    )

    def missing(url: str) -> list[str]:
        text = shown(url)
        return [pattern for pattern in expected if not re.search(pattern, text)]

    wait_until(lambda: not missing(f"{stack.here.exporter}/metrics"))  # a load is counted after it is answered
    assert re.search(expected[1], shown(f"{stack.here.web}/metrics"))


def test_the_command_that_it_shows_looks_inside(stack: Stack) -> None:
    """The servers have ports and sockets of their own: the command names them, ready to be pasted."""
    shown = re.search(r"Look inside: (.+)", stack.text)
    assert shown is not None

    done = subprocess.run(f"{shown[1]} --json", shell=True, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert {queue["name"] for queue in json.loads(done.stdout)["queues"]} >= {"cw.miss", "cw.upkeep"}


def test_files_are_served_from_here_alone(stack: Stack) -> None:
    """The page loads nothing from elsewhere, and other sites may not frame or press it."""
    with urllib.request.urlopen(stack.here.page, timeout=WITHIN) as answer:
        policy, html = answer.headers["content-security-policy"], answer.read().decode()

    assert "default-src 'self'" in policy
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
    assert stack.act("idle", Origin="http://elsewhere.example")[0] == 403
    assert stack.act("dance")[0] == 404


def test_the_database_does_not_notice_a_flash_sale(calm: Stack) -> None:
    """Both sides are asked; the cached one from memory, the uncached one with a query for every request."""
    calm.until("tick", lambda tick: tick["mode"] == "sale" and tick["kinds"].get("l1"), "sale")

    def is_spared(tick: Any) -> bool:
        """Not at every second: a machine that is busy otherwise may stop one side, or both."""
        cached, uncached = tick["cached"], tick["uncached"]
        is_faster = (cached["rate"] or 0) > (uncached["rate"] or 0) > 0
        is_unasked = cached["queries"] == 0 < (uncached["queries"] or 0)
        return is_faster and is_unasked and not (cached["failed"] or uncached["failed"])

    tick = calm.until("tick", is_spared)

    assert tick["counted_by"] == "pg_stat_statements"
    assert tick["cached"]["p50"] <= tick["cached"]["p99"]


def test_the_comparison_can_rest(calm: Stack) -> None:
    """Without its twin, the cached side is asked alone."""
    calm.until("tick", lambda tick: not tick["is_compared"], "compare")

    tick = calm.until("tick", lambda tick: tick["cached"]["rate"], "normal")

    assert tick["uncached"]["rate"] is None
    calm.until("tick", lambda tick: tick["is_compared"], "compare")


def test_ticks_go_on_after_traffic_has_stopped(calm: Stack) -> None:
    """Answers that come when nothing is asked any more belong to no second of asking, and do no harm."""
    for _ in range(3):
        calm.until("tick", lambda tick: tick["mode"] == "normal" and tick["cached"]["rate"], "normal")
        calm.until("tick", lambda tick: tick["mode"] == "idle" and tick["cached"]["rate"] == 0, "idle")

    assert "the sale failed" not in calm.text


def test_a_price_change_shows_on_all_panels(calm: Stack) -> None:
    """Six processes, each with the time from the commit; and they go on to show that price."""
    calm.until("tick", lambda tick: all(seen and seen.get("amount") for seen in tick["panels"]))

    race = calm.until("race", lambda race: None not in race["seen"], "price")

    assert len(race["seen"]) == PANELS and min(race["seen"]) >= 0
    tick = calm.until("tick", lambda tick: {seen["amount"] for seen in tick["panels"]} == {race["amount"]})
    assert len({seen["pid"] for seen in tick["panels"]}) == PANELS


def test_a_killed_worker_is_started_again(calm: Stack) -> None:
    """kill -9 of one worker: its name is there again as another process, and the stack stays."""
    workers = calm.until("tick", lambda tick: all(each["is_ready"] for each in tick["state"]["workers"]))
    before = {each["name"]: each for each in workers["state"]["workers"]}

    done = calm.until("outcome", lambda outcome: outcome["action"] == "kill" and outcome["stage"] == "done", "kill")

    tick = calm.until("tick", lambda tick: all(each["is_ready"] for each in tick["state"]["workers"]))
    after = {each["name"]: each for each in tick["state"]["workers"]}
    [name] = [name for name in before if before[name]["pid"] != after[name]["pid"]]
    assert after[name]["restarts"] == before[name]["restarts"] + 1
    assert f"Worker {name}, process {before[name]['pid']}, was killed" in done["text"]
    assert not Path(f"/proc/{before[name]['pid']}").exists()


def test_reads_go_on_while_the_store_is_stopped(calm: Stack) -> None:
    """The real process ends, answers still come; then it is back, and a price change shows everywhere again."""
    calm.until("tick", lambda tick: tick["kinds"].get("l1"), "sale")

    calm.until("tick", lambda tick: tick["state"]["store_pid"] == 0, "stop-store")
    calm.until(
        "tick",
        lambda tick: tick["state"]["store_pid"] == 0 and tick["cached"]["rate"] and not tick["cached"]["failed"],
    )

    assert calm.act("stop-store") == (
        409,
        {"type": "about:blank", "status": 409, "detail": "the store is stopped already"},
    )
    calm.until("tick", lambda tick: tick["state"]["store_pid"], "start-store")
    calm.until("race", lambda race: None not in race["seen"], "price")


def test_a_given_store_is_not_stopped(small: Stack) -> None:
    """The tick says why, and so does the refusal."""
    tick = small.until("tick", lambda tick: "stop-store" in tick["why_not"])

    status, problem = small.act("stop-store")

    assert status == 409
    assert problem["detail"] == tick["why_not"]["stop-store"] == control.NOT_OURS


def children(pid: int, words: str) -> list[int]:
    """The processes that a process has started, by what their command lines hold."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and words in stat.with_name("cmdline").read_text().replace("\0", " "):
                found.append(int(stat.parent.name))
    return found


def test_a_killed_web_server_is_started_again(small: Stack) -> None:
    """The server, on the same port, or the process below it that answers: the stack stays, and the API answers."""

    def answers() -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{small.here.web}/products/1", timeout=WITHIN) as answer,
        ):
            return bool(answer.status == 200)
        return False

    [server] = children(small.process.pid, "app.api:app")
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: "web is ready again" in small.text, WITHIN)
    assert answers()

    [server] = children(small.process.pid, "app.api:app")
    [process] = [
        pid for pid in children(server, "") if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: "Respawning worker-1" in small.text and answers(), WITHIN)
    assert children(small.process.pid, "app.api:app") == [server]


def test_flower_knows_every_worker_and_queue_from_its_start(stack: Stack) -> None:
    """It asks workers once: it must not start before them; and its own metrics are not the exporter's."""
    login = re.search(r"Flower: +\S+  user (\S+), password (\S+)", stack.text)
    assert login is not None

    def asked(path: str) -> Any:
        request = urllib.request.Request(f"{stack.here.flower}{path}")
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(login.groups()).encode()).decode())
        with urllib.request.urlopen(request, timeout=WITHIN) as answer:
            return json.load(answer)

    def knows_all() -> bool:
        """A worker that is busy may answer later than Flower waits; then it is asked again."""
        queues = {queue["name"] for queue in asked("/api/queues/length")["active_queues"]}
        return queues == {"cw.miss", "cw.revalidate", "cw.warm", "cw.upkeep"} or not asked("/api/workers?refresh=1")

    first = [re.search(pattern, stack.text) for pattern in (r"miss@\S+ ready\.", r"rest@\S+ ready\.", r"flower +\|")]
    begun = [found.start() for found in first if found]
    assert len(begun) == 3 and max(begun) == begun[-1], "Flower is started when all workers are ready"
    wait_until(knows_all)
    with urllib.request.urlopen(f"{stack.here.exporter}/metrics", timeout=WITHIN) as answer:
        exported = answer.read()

    assert b"cacheworkers_queue_messages" in exported and b"flower_" not in exported


def test_whatever_is_killed_is_started_again(stack: Stack) -> None:
    """kill -9 of what is neither worker nor web: each is ready again, and the page may still kill workers alone."""
    words = {
        "page": "app.page.server:app",
        "beat": "app.worker beat",
        "drain": "app.drain",
        "flower": "app.worker flower",
    }
    words["exporter"] = "app.shop:cache exporter"

    for each in words.values():
        [pid] = children(stack.process.pid, each)
        os.kill(pid, signal.SIGKILL)

    wait_until(lambda: all(f"up      | {name} is ready again" in stack.text for name in words), WITHIN)
    tick = stack.until("tick", lambda tick: tick["state"]["workers"])
    assert {each["name"] for each in tick["state"]["workers"]} == {"miss", "rest"}


# -- in a browser


class Browser:
    """Pages in one Chromium, and what their consoles say."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self.errors: list[str] = []

    def open(self, url: str, **options: Any) -> Any:
        page = self._browser.new_context(**options).new_page()
        page.set_default_timeout(1000 * WITHIN)
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#link[data-state=live]")
        return page

    def close(self) -> None:
        for context in self._browser.contexts:
            context.close()


@pytest.fixture(scope="module")
def chrome(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    words = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    words += " --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=words.split())
        yield launched
        launched.close()


@pytest.fixture
def browser(chrome: Any) -> Iterator[Browser]:
    made = Browser(chrome)
    yield made
    made.close()


#: Whether a chart's canvas has pixels of a colour of the style sheet.
HAS_COLOUR = """([id, name]) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const wanted = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const canvas = document.querySelector(`#${id} canvas`);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4)
    if (wanted.every((value, offset) => data[at + offset] === value) && data[at + 3] === 255) return true;
  return false;
}"""
#: Whether the dot before an element is of a colour of the style sheet.
HAS_DOT = """([selector, name]) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const wanted = `rgb(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(", ")})`;
  const { backgroundColor, color } = getComputedStyle(document.querySelector(selector), "::before");
  return [backgroundColor, color].includes(wanted);
}"""
#: Notes the words that are drawn on each chart.
DRAWN_WORDS = """() => {
  window.drawn = {};
  const draw = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    (drawn[this.canvas.closest("figure").id] ??= new Set()).add(text);
    return draw.call(this, text, ...rest);
  };
}"""
TOPS = "(selector) => [...document.querySelectorAll(selector)].map((each) => each.getBoundingClientRect().top)"
CHARTS = {"chart-rate": "--cached", "chart-queries": "--uncached", "chart-latency": "--cached", "chart-kinds": "--l1"}


@pytest.mark.browser
def test_charts_get_data_and_the_console_no_errors(calm: Stack, browser: Browser) -> None:
    """A sale, started with its key, is drawn on every chart, in the dark and in the light."""
    page = browser.open(calm.here.page, color_scheme="dark")

    page.keyboard.press("f")

    page.wait_for_selector("[data-action=sale][aria-pressed=true]")
    for chart, name in CHARTS.items():
        page.wait_for_function(HAS_COLOUR, arg=[chart, name])
    page.wait_for_function("document.getElementById('cached-rate').textContent.replace(',', '') > 0")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    for chart, name in CHARTS.items():
        page.wait_for_function(HAS_COLOUR, arg=[chart, name])
    assert browser.errors == []


@pytest.mark.browser
def test_buttons_work_by_keyboard(calm: Stack, browser: Browser) -> None:
    """Each is reached with Tab and pressed with Enter or Space; what came of it is said aloud."""
    page = browser.open(calm.here.page)
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.action"))

    page.focus("[data-action=normal]")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-action=normal][aria-pressed=true]")
    page.focus("[data-action=idle]")
    page.keyboard.press("Space")
    page.wait_for_selector("[data-action=idle][aria-pressed=true]")

    actions = ["normal", "sale", "idle", "price", "kill", "stop-store", "compare"]
    assert list(dict.fromkeys(filter(None, reached))) == actions
    assert page.get_attribute("#latest", "aria-live") == "polite"
    assert page.inner_text("#latest") == "The traffic has stopped."


@pytest.mark.browser
def test_a_price_change_is_seen_on_every_panel(calm: Stack, browser: Browser) -> None:
    """Two pages, six panels each: the same new price, with its time."""
    pages = [browser.open(calm.here.page) for _ in range(2)]

    before = [page.inner_text("#race") for page in pages]

    pages[0].keyboard.press("p")

    for page, old in zip(pages, before, strict=True):
        page.wait_for_function(
            "(old) => [document.querySelector('#race').innerText].some((now) => now !== old && /all six/.test(now))",
            arg=old,
        )
        assert page.locator("#panels .is-new").count() == PANELS
        page.wait_for_function(
            "new Set([...document.querySelectorAll('#panels .price')].map((e) => e.textContent)).size === 1"
        )
        assert all(re.fullmatch(r"after [\d.,]+ m?s", each) for each in page.locator("#panels .ms").all_inner_texts())
    assert pages[0].inner_text("#panels .price") == pages[1].inner_text("#panels .price")


@pytest.mark.browser
def test_a_kill_and_an_outage_are_reported(calm: Stack, browser: Browser) -> None:
    """The page goes on, says what happened, and offers to start the store again."""
    page = browser.open(calm.here.page)
    page.keyboard.press("f")

    page.keyboard.press("k")
    page.wait_for_selector("#latest:has-text('took its place')")
    page.keyboard.press("s")
    page.wait_for_selector("button:has-text('Start the store')")
    page.wait_for_selector("#processes [data-name=Store][data-state=down]")
    page.wait_for_function("document.getElementById('cached-rate').textContent.replace(',', '') > 0")
    page.keyboard.press("s")
    page.wait_for_selector("#latest:has-text('The store is back')")

    page.wait_for_selector("button:has-text('Stop the store')")
    assert browser.errors == []


@pytest.mark.browser
def test_the_status_says_that_the_store_is_away_and_when_it_is_back(calm: Stack, browser: Browser) -> None:
    """In words and in colour, at the top and beside what happened last; then all is live again."""
    page = browser.open(calm.here.page)
    page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('link').textContent))"
        ".observe(document.getElementById('link'), {childList: true, characterData: true, subtree: true})"
    )
    page.wait_for_function(HAS_DOT, arg=["#link", "--good"])

    page.keyboard.press("s")

    page.wait_for_selector("#link[data-state=away]:has-text('Store away')")
    page.wait_for_function(HAS_DOT, arg=["#link", "--bad"])
    page.wait_for_function(HAS_DOT, arg=["#latest", "--wait"])
    page.keyboard.press("s")
    page.wait_for_function(HAS_DOT, arg=["#link", "--good"])
    page.wait_for_function(HAS_DOT, arg=["#latest", "--good"])
    page.wait_for_selector("#link[data-state=live]:text-is('Live')")
    said = page.evaluate("said")
    assert "Store is back" in said[said.index("Store away") :]
    assert browser.errors == []


@pytest.mark.browser
def test_every_line_in_a_chart_has_its_word(calm: Stack, browser: Browser) -> None:
    """In all four charts, in what is drawn and in what is read aloud; a new line stands at the right edge."""
    calm.until("tick", lambda tick: any(seen and seen.get("amount") for seen in tick["panels"]))
    page = browser.open(calm.here.page)
    page.evaluate(DRAWN_WORDS)

    page.keyboard.press("p")

    for chart in CHARTS:
        page.wait_for_function("(id) => [...(drawn[id] ?? [])].some((text) => /^price/.test(text))", arg=chart)
        page.wait_for_selector(f"#{chart} .plot[aria-label*='; price at ']")
    assert browser.errors == []


@pytest.mark.browser
def test_words_of_lines_do_not_cover_each_other(small: Stack, browser: Browser) -> None:
    """Words of 50 pixels in a chart of 400: each beside its line, within the chart; those alike are counted."""
    page = browser.open(small.here.page)
    marks = [(10, "price"), (100, "kill"), (120, "price"), (130, "price"), (140, "kill"), (150, "sale"), (390, "sale")]

    found = page.evaluate(
        "async (marks) => (await import('/charts.js')).labels(marks.map(([x, word]) => ({x, word})), () => 50, 400, 4)",
        marks,
    )

    assert [(label["text"], label["left"], label["row"]) for label in found] == [
        ("price", 14, 0),
        ("kill x2", 104, 0),
        ("price x2", 124, 1),
        ("sale", 154, 2),
        ("sale", 336, 0),
    ]


@pytest.mark.browser
def test_what_cannot_be_done_says_why(small: Stack, browser: Browser) -> None:
    """With a given store the button is disabled, and the reason stands below it."""
    page = browser.open(small.here.page)

    page.wait_for_selector("[data-action=stop-store]:disabled")

    assert control.NOT_OURS in page.inner_text("#why")


@pytest.mark.browser
def test_a_page_left_open_over_a_restart_connects_again(small: Stack, browser: Browser) -> None:
    """It says that the connection is lost, and that it is back; the stack does not wait for open pages."""
    page = browser.open(small.here.page)

    assert small.end() == 0
    page.wait_for_selector("#link[data-state=lost]")
    assert float(page.evaluate("getComputedStyle(document.querySelector('.score')).opacity")) < 1
    assert "start it" in page.inner_text("#latest")
    small.start()

    page.wait_for_selector("#link[data-state=live]")
    page.wait_for_selector("#latest:has-text('Connected again. The stack was started again')")
    assert "page is killed" not in small.text


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 800, 1280, 1920])
def test_nothing_is_cut_off_at_any_width(stack: Stack, browser: Browser, width: int) -> None:
    """No sideways scrolling; the figures of a card, and the plots of a row, begin at one height."""
    page = browser.open(stack.here.page, viewport={"width": width, "height": 900})

    page.wait_for_function(f"document.querySelectorAll('#panels .price').length === {PANELS}")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert len(set(page.evaluate(TOPS, "#cached-rate, #cached-queries"))) == 1
    assert width <= 760 or len(set(page.evaluate(TOPS, "#chart-rate .plot, #chart-queries .plot"))) == 1
