"""What comparing values with their JSON costs a load, and what a hit decodes: `python -m benchmarks.value_checks`.

CPU time.  A load encodes, decodes and compares; of large values the comparison is sampled, so the mean of many loads
stands beside the cost of one that compares.  A hit pays for no check: it decodes.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pydantic

from benchmarks.report import markdown
from cacheworkers.core.codec import COMPARED_FIRST, Codec

AT = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
HEADS = ("value", "bytes", "encoded alone", "encoded and compared", "mean of many loads", "decoded by a hit")


class Product(msgspec.Struct):
    id: int
    name: str
    price: float
    at: datetime.datetime


class Model(pydantic.BaseModel):
    id: int
    name: str
    price: float
    at: datetime.datetime


VALUES: dict[str, tuple[Any, Any]] = {
    "a dict of 3 ints": (dict[str, int], {"a": 1, "b": 2, "c": 3}),
    "a Struct of 4 fields": (Product, Product(1, "oak table", 1.5, AT)),
    "a pydantic model of 4 fields": (Model, Model(id=1, name="oak table", price=1.5, at=AT)),
    "a list of 100 Structs": (list[Product], [Product(n, "oak table", 1.5, AT) for n in range(100)]),
}


def cost(call: Callable[[Any], Any], of: Any, count: int, rounds: int = 21) -> float:
    """Return the CPU microseconds of one call, the median of the rounds."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(count):
            call(of)
        times.append((time.process_time() - began) / count * 1e6)
    return statistics.median(times)


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few loads")
    count = 80 if parser.parse_args().quick else 400
    rows = []
    for name, (annotation, value) in VALUES.items():
        codec, payload = Codec(annotation), Codec(annotation).encode(value)
        first = statistics.median(cost(Codec(annotation).encode, value, COMPARED_FIRST, 1) for _ in range(21))
        times = [cost(codec._encode, value, count), first, cost(codec.encode, value, count)]
        times.append(cost(codec.decode, payload, count))
        rows.append((name, f"{len(payload):,}", *(f"{each:.2f} us" for each in times)))
    print(markdown(HEADS, rows))


if __name__ == "__main__":
    main()
