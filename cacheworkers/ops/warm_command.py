"""`cacheworkers warm`: has workers load calls from arguments, a file or the hottest, and gates deploys."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import astuple
from typing import IO, Any

import click
import msgspec

from cacheworkers.cache import Cache
from cacheworkers.core.signature import Signature
from cacheworkers.errors import CacheworkersError, CallError
from cacheworkers.flows.explain import Explanation
from cacheworkers.ops.output import Obj, counted, note
from cacheworkers.ops.warm_progress import progress_of
from cacheworkers.workers.diagnostics import BrokerUnreachable, worker_facts

#: What begins so is a call, of whatever loader; no JSON does.
_A_CALL = re.compile(r"[A-Za-z_][\w.-]*(@\d+)?[\[(]")
#: Where a row comes from, for messages, and what it says.
Row = tuple[str, str | bytes]
#: Of more calls than this it is not said why they failed.
MAX_REASONS = 5
#: Between two questions to the workers, seconds.
ASK_WORKERS_EVERY = 0.5


class Share(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A share such as `95%` or `0.95`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        """Return it as a number from 0 to 1."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"must be a share from 0% to 100%, got {value!r}", param, context)
        return share


class Warmed(msgspec.Struct, frozen=True):
    """What a run did, for scripts.

    Attributes:
        calls: different ones that were to be warm.
        fresh, loaded, failed: what became of them.
        bad: rows that are not calls of the loader.
        duplicates: rows that name a call again.
        share: of the calls that are fresh at the end; 0 where a list named no call.
        failures: some of those that failed.
    """

    calls: int
    fresh: int
    loaded: int
    failed: int
    bad: int
    duplicates: int
    share: float
    failures: list[str]


@click.command()
@click.argument("loader")
@click.argument("keys", nargs=-1)
@click.option(
    "--file",
    "file",
    type=click.File("rb"),
    help="Read rows from a file; - is standard input.",
)
@click.option(
    "--hot", type=click.IntRange(min=1), metavar="N", help="Warm the N hottest calls: those with the most recent reads."
)
@click.option("--max-rate", type=float, metavar="PER_SECOND", help="Maximum calls per second.")
@click.option("--concurrency", type=int, help="Maximum calls in progress.  [default: Config.warm_concurrency]")
@click.option(
    "--min-fresh", type=Share(), default=1.0, help="Succeed once this share of calls is fresh: 95%.  [default: 100%]"
)
@click.option(
    "--wait-for-workers",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a worker that consumes the warm queue may take to answer, before anything is loaded; 0 asks none.",
)
@click.pass_obj
def warm(
    obj: Obj,
    loader: str,
    keys: tuple[str, ...],
    file: IO[bytes] | None,
    hot: int | None,
    max_rate: float | None,
    concurrency: int | None,
    min_fresh: float,
    wait_for_workers: float,
) -> None:
    """Have workers load calls of LOADER, and wait for them.

    A row is one call: its argument as JSON, 42; an array of all of them where the loader takes several, ["lamp",2]; or
    the call itself, product[42].  Bad rows are named and left out.  Fresh entries are skipped, so that a run that
    was killed continues where it was.

    \b
    cacheworkers warm product 1 2 3
    cacheworkers warm product --file ids.txt --max-rate 500
    psql -Atc 'SELECT id FROM product WHERE on_sale' | cacheworkers warm product --file -
    cacheworkers warm product --hot 1000 --min-fresh 95% && deploy

    Status 0 if the share of --min-fresh is fresh at the end; 1 if not, if a row was bad, or if no worker consumes
    the warm queue, in which case nothing was loaded.  Where no row names a call the share is 0: no success, unless
    --min-fresh 0%.  With --hot, nothing hot yet is success.
    """
    cache, show = obj
    if sum(source is not None for source in (file, hot)) + bool(keys) != 1:
        raise click.UsageError("give one source: KEYS, --file or --hot")
    rows = _rows(cache, loader, keys, file, hot)
    calls, bad, duplicates = _read(cache, loader, rows)
    cache.queues()  # without a broker each call would be waited for, in vain
    if cache.internals.app is None:
        note("this cache has no Celery app, `Cache(celery=app)`: this command loads by itself, and asks no worker")
    elif calls and wait_for_workers:
        require_worker(cache, loader, wait_for_workers)
    options: dict[str, Any] = {} if max_rate is None else {"max_rate": max_rate}
    began = time.monotonic()
    job = cache.warm(loader, calls, concurrency=concurrency, min_fresh=min_fresh, **options)
    with progress_of(job, loader, cache.config.queues) as (every, show_progress):
        while not job.is_done:
            try:
                job.wait(every)
            except TimeoutError:
                show_progress()
    done = job.wait()
    share = done.share
    if not calls and hot:
        note(f"nothing of {loader} is hot: there is nothing to warm")
    elif not calls:  # a list that came out empty, or wrong, opens no deploy's gate
        share = 0.0
        note(f"no row names a call of {loader}: nothing was warmed, which counts as a share of 0")
    lapsed = done.done - round(share * done.calls)
    if lapsed > 0:
        fresh_for = cache.loaders[loader].policy.fresh_for
        note(_why_lapsed(lapsed, time.monotonic() - began, fresh_for))
    for call in done.failures[:MAX_REASONS]:
        note(f"{call}: {_why_failed(cache.explain(call))}")
    show(Warmed(done.calls, done.fresh, done.loaded, done.failed, bad, duplicates, share, done.failures))
    if share < min_fresh or bad:
        raise click.exceptions.Exit(1)


def require_worker(cache: Cache, loader: str, within: float) -> None:
    """Wait until a worker answers that consumes the warm queue and knows a loader, in this version; at most so long.

    Without Celery, or where the broker carries no such questions, nothing is asked.

    Args:
        within: seconds.

    Raises:
        click.ClickException: none has answered by then; says which queue or version, and what to start.
    """
    queue, end = cache.config.queues.warm, time.monotonic() + within
    is_said = False
    while True:
        try:
            says = why_no_worker(cache, loader, queue)
        except BrokerUnreachable as error:
            note(f"workers cannot be asked whether they consume {queue}: {error}")
            return
        if not says:
            return
        left = end - time.monotonic()
        if left <= 0:
            raise click.ClickException(f"{says}; nothing was loaded")
        if not is_said:
            is_said = True
            note(f"{says}; waiting for {within:g} s")
        time.sleep(min(left, ASK_WORKERS_EVERY))


def why_no_worker(cache: Cache, loader: str, queue: str) -> str:
    """Say why no worker that answers can load what is in a queue, and what to start; empty where one can.

    Empty also without Celery.

    Raises:
        BrokerUnreachable: workers cannot be asked.
    """
    app, spec = cache.internals.app, cache.loaders[loader]
    if app is None:
        return ""
    version = spec.policy.version
    workers = worker_facts(app)
    consuming = [worker for worker in workers if queue in worker.queues]
    if any(worker.loads(loader, version, spec.fingerprint.hex()) for worker in consuming):
        return ""
    if not consuming:
        taken = {each for worker in workers for each in worker.queues}
        unserved = [each for each in astuple(cache.config.queues) if each not in taken]
        command = cache.internals.runtime.marks.worker_command(app, unserved, asks=True)
        return f"no worker that answers consumes {queue}: start `{command}`"
    for worker in consuming:
        if loader in worker.loaders and worker.versions.get(loader, version) == version:
            return (
                f"no worker knows {loader} with this return type, parameters and tags: {worker.name} consumes {queue}, "
                f"and is of another release; restart it with this code"
            )
        if loader in worker.loaders:
            return (
                f"no worker knows {loader} version {version}: {worker.name} consumes {queue}, and knows version "
                f"{worker.versions[loader]}; start workers with this code"
            )
    module = cache.internals.runtime.marks.modules.get(loader)
    included = f", whose app imports {module}: `app.conf.include = [{module!r}]`" if module else ""
    return f"{consuming[0].name} consumes {queue}, and does not know {loader}: restart it with this code{included}"


def _rows(cache: Cache, loader: str, keys: Iterable[str], file: IO[bytes] | None, hot: int | None) -> Iterable[Row]:
    if file is not None:  # lines as bytes: one that is no text is a bad row, and not the end of all
        return ((f"line {number}", line) for number, line in enumerate(file, 1) if line.strip())
    if hot is not None:
        adopt = cache.loaders[loader].signature.of_this_version
        return (("access scores", adopt(call) or call) for call, _ in cache.hot(loader, hot))
    return ((f"key {number}", key) for number, key in enumerate(keys, 1))


def _read(cache: Cache, loader: str, rows: Iterable[Row]) -> tuple[list[str], int, int]:
    """Return the calls that rows name, how many rows name none, and how many name one again."""
    signature = cache.loaders[loader].signature
    calls: dict[str, None] = {}
    bad = duplicates = 0
    for where, row in rows:
        try:
            call = _call(signature, row)
        except CacheworkersError as error:
            bad += 1
            click.echo(f"{where}: {error}", err=True)
            continue
        duplicates += call in calls
        calls[call] = None
    return list(calls), bad, duplicates


def _call(signature: Signature, row: Any) -> str:
    """Return the text of the call that a row names.

    Raises:
        CallError: it names none.
    """
    if isinstance(row, bytes):
        try:
            row = row.decode("utf-8-sig")  # some editors begin a file with a mark
        except UnicodeDecodeError as error:
            raise CallError(f"{row[:80]!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    text = row.strip()
    if _A_CALL.match(text):
        return signature.parse(signature.completed(text)).text
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise CallError(
            f'{text[:80]!r} is neither arguments as JSON, 42 or "lamp", nor a call of {signature.name}'
        ) from None
    takes_several = len(signature.parameters) != 1
    return signature.bind(tuple(value) if takes_several and isinstance(value, list) else (value,), {}).text


def _why_failed(found: Explanation) -> str:
    """Say why a call is not warm, from what the store knows of it."""
    if found.age is None and found.fresh_for:
        return (
            f"{found.problem}, which is fresh for {found.fresh_for:.0f} s more and is left to its readers: invalidate "
            f"its tags, raise `version`, or run this again then, with workers of this code"
        )
    fails = found.failure
    return f"{fails.get('kind')}: {fails.get('text')}" if fails else "no worker has loaded it in time"


def _why_lapsed(lapsed: int, lasted: float, fresh_for: float) -> str:
    """Say why calls that were warm at some time are not at the end, and what helps."""
    says = f"{counted(lapsed, 'warmed call is', 'warmed calls are')} no longer fresh: "
    if lasted > fresh_for:
        return says + (
            f"this took {lasted:.0f} s, and they are fresh for {fresh_for:g} s; raise --max-rate, start more workers, "
            "let them be fresh for longer, or warm fewer"
        )
    return says + "they were invalidated or evicted meanwhile; run it again"
