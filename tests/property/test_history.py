"""The history checker: finds every read that is too old and no other; a checker with a fault in it does not pass."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from benchmarks import history
from benchmarks.history import Invalidate, Operation, Read, Received, Write

#: Few keys, versions and instants, so that they meet often.
keys = st.sampled_from("aab")
instants = st.integers(0, 12).map(float)
spans = st.tuples(instants, st.integers(0, 4))


def ended(span: tuple[float, int]) -> float | None:
    """The end of a span; those of length 4 have none."""
    return None if span[1] == 4 else span[0] + span[1]


versions = st.integers(0, 5)
writes = st.builds(lambda k, v, s: Write(k, v, s[0], ended(s)), keys, versions, spans)
invalidations = st.builds(lambda k, s, v: Invalidate(k, s[0], ended(s), v), keys, spans, st.one_of(st.none(), versions))
reads = st.builds(lambda k, v, s: Read(k, v, s[0], ended(s)), keys, versions, spans)
histories = st.lists(st.one_of(writes, invalidations, reads), min_size=3, max_size=12)

#: Of one key, read from the memories of two processes.
memories = st.sampled_from("xy")
reported = st.builds(lambda s, v: Invalidate("a", s[0], ended(s), v), spans, versions)
hits = st.builds(lambda m, s: Read("a", 0, s[0], ended(s), "l1", memory=m), memories, spans)
proofs = st.builds(lambda m, s: Received(m, s[0], ended(s)), memories, spans)
remembered = st.lists(st.one_of(reported, hits, proofs, reads), min_size=3, max_size=12)


def known_at(read: Read, operations: list[Operation], l1_for: float) -> float:
    """What was acknowledged before this instant a read must know."""
    if read.tier != "l1" or not l1_for:
        return read.began
    received = [
        each.began
        for each in operations
        if isinstance(each, Received)
        and each.memory == read.memory
        and each.ended is not None
        and each.ended < read.began
    ]
    return max([read.began - l1_for, *received])


def by_definition(operations: list[Operation], l1_for: float) -> list[tuple[Read, int]]:
    """What the promise says, word for word: (read, least version)."""
    found = []
    for read in operations:
        if not isinstance(read, Read):
            continue
        least, instant = -1, known_at(read, operations, l1_for)
        for each in operations:
            if isinstance(each, Invalidate) and each.key == read.key and each.ended is not None:
                if each.ended < instant:
                    covered = [
                        w.version
                        for w in operations
                        if isinstance(w, Write) and w.key == each.key and w.ended is not None and w.ended < each.began
                    ]
                    least = max([least, *covered, *([] if each.version is None else [each.version])])
        if read.version < least:
            found.append((read, least))
    return found


class Cache:
    """A right cache of one key, driven step by step; what it does is recorded with one instant a step."""

    def __init__(self) -> None:
        self.now = 0.0
        self.database = 0
        self.entry: int | None = 0
        self.invalidating: list[float] = []
        self.reading: list[tuple[float, int | None]] = []
        self.history: list[Operation] = []

    def step(self, what: str) -> None:
        """Do one step, if it can be done."""
        self.now += 1.0
        match what:
            case "commit":
                self.database += 1
                self.history.append(Write("a", self.database, self.now - 0.5, self.now))
            case "begin to invalidate":
                self.invalidating.append(self.now)
            case "drop and acknowledge" if self.invalidating:
                self.entry = None
                self.history.append(Invalidate("a", self.invalidating.pop(0), self.now))
            case "die" if self.invalidating:
                self.history.append(Invalidate("a", self.invalidating.pop()))
            case "begin to read":
                self.reading.append((self.now, None))
            case "get" if self.reading:
                if self.entry is None:
                    self.entry = self.database
                self.reading[0] = (self.reading[0][0], self.entry)
            case "return" if self.reading and self.reading[0][1] is not None:
                began, version = self.reading.pop(0)
                assert version is not None
                self.history.append(Read("a", version, began, self.now))


STEPS = [
    "commit", "begin to invalidate", "drop and acknowledge", "die", "begin to read", "get", "return",
]  # fmt: skip
runs = st.lists(st.sampled_from(STEPS), max_size=60)
#: Where in a list, from its beginning to its end.
shares = st.floats(0, 1, exclude_max=True)


def ran(steps: list[str]) -> Cache:
    cache = Cache()
    for step in steps:
        cache.step(step)
    return cache


#: What a law is tried with: the same for the checker and for every mutant, because the seeds are fixed.
Examples = list[tuple[Any, ...]]


def drawn(count: int, *strategies: st.SearchStrategy[Any]) -> Examples:
    """Return examples of the strategies; to make them takes longer than any law."""
    found: Examples = []

    @settings(deadline=None, max_examples=count, phases=[Phase.generate], derandomize=True, database=None)
    @given(st.tuples(*strategies))
    def collect(example: tuple[Any, ...]) -> None:
        found.append(example)

    collect()
    return found


# -- the laws, each for a checker that is given


@functools.cache
def of_the_definition() -> Examples:
    return [(operations, by_definition(operations, 0.0)) for (operations,) in drawn(500, histories)]


def law_of_the_definition(check: Callable[..., Any]) -> None:
    """It finds what the promise's own words find, and says the same least version."""
    for operations, expected in of_the_definition():
        assert [(stale.read, stale.least) for stale in check(operations)] == expected


#: An invalidation ends while a proof is on its way, which is so rare that 1500 examples may have none.
RARE = [Invalidate("a", 0.0, 1.0, 1), Received("x", 0.0, 2.0), Read("a", 0, 3.0, 4.0, "l1", memory="x")]


@functools.cache
def of_memory() -> Examples:
    """Faults in what memories may answer are rarer."""
    examples = [(RARE, 100.0), *drawn(1500, remembered, st.sampled_from([0.0, 2.0, 100.0]))]
    return [(operations, l1_for, by_definition(operations, l1_for)) for operations, l1_for in examples]


def law_of_memory(check: Callable[..., Any]) -> None:
    """The same of reads that may be late, of what their memory has not received."""
    for operations, l1_for, expected in of_memory():
        found = check(operations, l1_for=l1_for)

        assert [(stale.read, stale.least) for stale in found] == expected


@functools.cache
def of_the_right_cache() -> Examples:
    return [(ran(steps).history,) for (steps,) in drawn(500, runs)]


def law_of_the_right_cache(check: Callable[..., Any]) -> None:
    """Nothing is found in what a right cache did."""
    for (operations,) in of_the_right_cache():
        assert check(operations) == []


@functools.cache
def of_the_one_stale_read() -> Examples:
    """The history with a stale read in it, and that read."""
    found = []
    for steps, which, later, where in drawn(500, runs, shares, st.sampled_from([0.5, 40.0]), shares):
        made = ran([*steps, "commit", "begin to invalidate", "drop and acknowledge"]).history
        acknowledged = [each for each in made if isinstance(each, Invalidate) and each.ended is not None]
        missed = acknowledged[int(which * len(acknowledged))]
        covered = [w.version for w in made if isinstance(w, Write) and (w.ended or 0) < missed.began]
        if not covered:
            continue
        assert missed.ended is not None
        stale = Read("a", max(covered) - 1, missed.ended + later, None, by="me")
        at = int(where * (len(made) + 1))
        found.append(([*made[:at], stale, *made[at:]], stale))
    return found


def law_of_the_one_stale_read(check: Callable[..., Any]) -> None:
    """One stale read put into it is found, and nothing else."""
    for operations, stale in of_the_one_stale_read():
        found = check(operations)

        assert [each.read for each in found] == [stale]
        assert found[0].late > 0


LAWS = [law_of_the_definition, law_of_memory, law_of_the_right_cache, law_of_the_one_stale_read]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_checker_keeps_the_laws(law: Callable[..., None]) -> None:
    law(history.check)


#: What is wrong with a checker -> its source, before and after.
MUTANTS = {
    "a promise holds from its beginning": ("acknowledged.append((each.ended,", "acknowledged.append((each.began,"),
    "a read is judged by its end": ("known_at = read.began", "known_at = read.ended or read.began"),
    "a memory that has received it may be late": (
        "_last_before(received.get(read.memory, ()), read.began) or 0.0",
        "0.0",
    ),
    "a proof counts from its beginning": ("append((each.ended, each.began))", "append((each.began, each.began))"),
    "a proof is of its end": ("append((each.ended, each.began))", "append((each.ended, each.ended))"),
    "a proof whose end is unknown counts": (
        "isinstance(each, Received) and each.ended is not None",
        "isinstance(each, Received)",
    ),
    "another memory has received it": ("received.get(read.memory, ())", "sum(received.values(), [])"),
    "the store may be late": ('read.tier == "l1" and l1_for', "l1_for"),
    "memory is never late": ("known_at - l1_for", "known_at"),
    "a write whose end is unknown counts": (
        "_rising((w.ended, w.version) for w in writes if w.ended is not None)",
        "_rising((w.ended or w.began, w.version) for w in writes)",
    ),
    "an invalidation that died counts": (
        "if each.ended is None:\n                continue",
        "if each.ended is None:\n                each = Invalidate(each.key, each.began, each.began, each.version)",
    ),
    "a write that had only begun is covered": ("_rising((w.ended, w.version)", "_rising((w.began, w.version)"),
    "equal instants are in order": ("bisect_left(rising", "bisect_right(rising"),
    "the last promise alone counts": ("if not found or version > found[-1][1]:", "if True:"),
    "one too old is let go": ("read.version >= least", "read.version >= least - 1"),
    "an equal version is too old": ("read.version >= least", "read.version > least"),
    "what the caller knew is forgotten": ("for version in (covered, each.version)", "for version in (covered,)"),
    "keys are mixed up": ("writes.get(key, [])", "sum(writes.values(), [])"),
}


#: Faults in what a memory may answer: the other laws would be tried in vain.
OF_MEMORY = {
    "a memory that has received it may be late",
    "a proof counts from its beginning",
    "a proof is of its end",
    "a proof whose end is unknown counts",
    "another memory has received it",
    "the store may be late",
    "memory is never late",
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_checker_with_a_fault_breaks_a_law(fault: str) -> None:
    before, after = MUTANTS[fault]
    source = Path(history.__file__).read_text()
    assert source.count(before) == 1, f"the checker no longer has {before!r}"
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(before, after), history.__file__, "exec"), mutant.__dict__)
    for name in ("Read", "Write", "Invalidate", "Received"):  # the histories are made of the checker's own
        setattr(mutant, name, getattr(history, name))

    laws = [law_of_memory] if fault in OF_MEMORY else LAWS
    assert any(is_broken(law, mutant.check) for law in laws), "every law still holds"


def is_broken(law: Callable[..., None], check: Callable[..., Any]) -> bool:
    try:
        law(check)
    except Exception:  # whatever it raises, it is no checker
        return True
    return False
