"""Each race of the protocol, driven step by step through the real flows and scripts."""

from __future__ import annotations

import gc
import secrets
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.core import envelope
from cacheworkers.flows import invalidate as invalidating
from cacheworkers.flows import load as loading
from cacheworkers.flows import read as reading
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until


class Shop:
    """A row in a database, its loader, and flows on it that can be stopped anywhere."""

    def __init__(self, cache: Cache) -> None:
        self.price = 1
        self.loads = 0
        self.cache = cache

        @cache.loader(fresh_for=300, stale_for=60, jitter=0, early=0, tags=("product:{product_id}",))
        def product(load: Load, product_id: int) -> int:
            self.loads += 1
            load.tag("products")
            return self.price

        self.product = product
        self.ports = cache._ports
        self.spec = cache._loaders["product"]

    def loader(self) -> Stepper[Any]:
        """A worker with a claim for product[1] in its hands."""
        token = secrets.token_hex(8)
        self.ports.store.claim("product[1]", token, lease_for=30, seen=self.seen()).run()
        request = LoadRequest("product", "product[1]", token, self.seen().hex(), "miss")
        return Stepper(loading.load(self.ports, self.spec, [request], self.ports.worker))

    def invalidator(self, mode: Any = "hard", tag: str = "product:1") -> Stepper[Any]:
        return Stepper(invalidating.invalidate_tags(self.ports, [tag], mode))

    def seen(self) -> bytes:
        return envelope.version_of(self.ports.store.get("product[1]").run())

    def stored(self) -> Any:
        found = self.product.peek(1)
        return None if found is None else (found.value, found.freshness.value)

    def members(self, tag: str = "product:1") -> list[str]:
        return self.ports.store.walk_tags([(tag, 0, 0)]).run()[0][1]


@pytest.fixture
def shop(cache: Cache) -> Shop:
    return Shop(cache)


def test_invalidation_between_load_and_register_is_seen_by_the_load(shop: Shop) -> None:
    """`v[T] > s0` at registering: load reads old data; invalidation finds an empty set; load registers."""
    load = shop.loader().until("register")
    shop.price = 2
    shop.invalidator().finish()

    load.finish()

    assert shop.stored() == (2, "fresh")
    assert shop.loads == 2


def test_invalidation_between_register_and_write_breaks_the_lease(shop: Shop) -> None:
    """Lease check at the write: load reads old data, registers; invalidation takes the set, deletes; load writes."""
    load = shop.loader().until("write")
    shop.price = 2
    shop.invalidator().finish()

    load.finish()

    assert shop.stored() == (2, "fresh")


def test_write_between_the_two_halves_of_a_drop_is_refused(shop: Shop) -> None:
    """What a detached set names is deleted by two commands: a load that writes between them has lost its lease already.

    Else its old value would stay, fresh and in no tag set, and the next invalidation would not find it either.
    """
    load = shop.loader().until("write")
    shop.price = 2
    invalidator = shop.invalidator().until("unlink")
    invalidator.step()
    assert invalidator.at == "unlink"

    load.step()
    invalidator.finish()
    load.finish()

    assert shop.stored() == (2, "fresh")
    assert shop.members() == ["product[1]"]


def test_load_that_began_on_another_server_registers_again(shop: Shop) -> None:
    """A failover between register and write kept the lease, and lost the registration."""
    load = shop.loader().until("write")
    client, keys = shop.ports.store.link.client(), shop.ports.store.keys
    client.delete(keys.tag_set("product:1"), keys.tag_set("products"))
    client.hset(keys.lease("product[1]"), "run", "f" * 40)

    load.finish()

    assert shop.stored() == (1, "fresh")
    assert shop.members() == shop.members("products") == ["product[1]"]


def test_invalidation_by_key_during_a_load_is_not_lost(shop: Shop) -> None:
    load = shop.loader().until("write")
    shop.price = 2
    shop.product.invalidate(1)

    load.finish()

    assert shop.stored() == (2, "fresh")


def test_tag_known_only_from_the_data_is_checked_too(shop: Shop) -> None:
    load = shop.loader().until("register")
    shop.price = 2
    shop.invalidator(tag="products").finish()

    load.finish()

    assert shop.stored() == (2, "fresh")


def test_second_invalidation_drains_what_the_first_put_aside(shop: Shop) -> None:
    """A takes the members and pauses; B finds the set empty, and must not return while the old entry is there."""
    shop.loader().finish()
    first = shop.invalidator().until("unlink")
    shop.price = 2

    shop.invalidator().finish()

    assert shop.stored() is None
    first.finish()


def test_crashed_invalidator_leaves_work_that_the_next_one_finishes(shop: Shop) -> None:
    """Members leave the detached set only after deletion."""
    shop.loader().finish()
    shop.invalidator().until("unlink").crash()
    assert shop.stored() == (1, "fresh")

    shop.invalidator().finish()

    assert shop.stored() is None


def test_a_crashed_load_keeps_its_lease(shop: Shop) -> None:
    """Else what crashes here would be tidier than what crashes in earnest."""
    released: list[str] = []
    shop.ports.release_soon = lambda call, name: released.append(call)
    shop.loader().until("register").crash()
    gc.collect()

    assert released == []
    assert shop.ports.store.lease("product[1]").run()["fence"]


def test_sweep_finishes_an_invalidation_whose_process_died(shop: Shop) -> None:
    shop.loader().finish()
    shop.invalidator().until("unlink").crash()

    done = shop.cache.collect_garbage()

    assert done.entries == 1
    assert shop.stored() is None


def test_soft_invalidation_leaves_the_entry_findable_by_a_hard_one(shop: Shop) -> None:
    """Soft takes nothing out: else soft, then hard, and the old value would stay."""
    shop.loader().finish()
    shop.invalidator("soft").finish()
    assert shop.stored() == (1, "stale")

    shop.invalidator("hard").finish()

    assert shop.stored() is None


def test_a_process_whose_clock_is_behind_does_not_find_fresh_what_was_softened(shop: Shop) -> None:
    """Its idea of the store's time comes from round trips, and may be off by as much as they took."""
    shop.loader().finish()
    shop.invalidator("soft").finish()
    shop.ports.clock.offset -= 0.5

    assert shop.stored() == (1, "stale")


def test_load_overtaken_by_a_soft_invalidation_is_not_stored_as_fresh(shop: Shop) -> None:
    load = shop.loader().until("register")
    shop.price = 2
    shop.invalidator("soft").finish()

    load.finish()

    assert shop.stored() == (2, "fresh")


def test_load_that_has_registered_before_a_soft_invalidation_is_not_stored_as_fresh(shop: Shop) -> None:
    """Its registration came too early to see the mark, and its entry too late to be softened: it loses its lease."""
    load = shop.loader().until("write")
    shop.price = 2
    shop.invalidator("soft").finish()

    load.finish()

    assert shop.stored() == (2, "fresh")


def test_soft_invalidation_finishes_a_hard_one_that_died(shop: Shop) -> None:
    shop.loader().finish()
    shop.invalidator("hard").until("unlink").crash()

    shop.invalidator("soft").finish()

    assert shop.stored() is None


def test_a_member_whose_write_is_still_to_come_outlives_a_sweep(shop: Shop) -> None:
    """Dropped because its entry is not there, it would be written after that, and found by nobody."""
    load = shop.loader().until("write")
    shop.cache.collect_garbage()
    load.finish()
    shop.price = 2

    shop.invalidator().finish()

    assert shop.stored() is None


def test_the_mark_of_an_invalidation_outlives_a_sweep(shop: Shop) -> None:
    """A load that began before it has still to see it."""
    load = shop.loader().until("register")
    shop.price = 2
    shop.invalidator().finish()
    shop.cache.collect_garbage()

    load.finish()

    assert shop.stored() == (2, "fresh")


def test_a_short_life_does_not_end_the_membership_of_a_longer_one(shop: Shop) -> None:
    """The entry with the long life is there until the short one is written, which may be never."""
    store = shop.ports.store
    store.register([("product[1]", ["product:1"], 3600.0)], load_for=10).run()
    long = store.link.client().zscore(store.keys.tag_set("product:1"), "product[1]")

    store.register([("product[1]", ["product:1"], 1.0)], load_for=10).run()

    assert store.link.client().zscore(store.keys.tag_set("product:1"), "product[1]") >= long


def test_membership_outlasts_the_entry_by_more_than_a_load(shop: Shop) -> None:
    """An entry's life begins with its load; the set's clock at its registration, and the write comes later still."""
    store = shop.ports.store
    store.register([("product[1]", ["product:1"], 60.0)], load_for=10).run()

    score = store.link.client().zscore(store.keys.tag_set("product:1"), "product[1]")

    assert score / 1000 - store.snapshot().run().now > 60.0 + 10.0


def test_detach_sent_twice_puts_nothing_out_of_reach(shop: Shop) -> None:
    """A late reply makes a client repeat a script: the second rename must not overwrite the first set."""
    store = shop.ports.store
    shop.loader().finish()
    detach = store.detach(["product:1"], store.next_seq().run())
    detach.run()
    store.register([("product[2]", ["product:1"], 60.0)], load_for=10).run()

    detached = detach.run()

    assert len(detached) == 2
    members = {call for each in detached for call in store.link.client().zrange(each.name, 0, -1)}
    assert members == {b"product[1]", b"product[2]"}


def test_write_sent_twice_is_stored_once_and_answers_the_same(shop: Shop) -> None:
    load = shop.loader().until("write")
    step = load._step

    assert step.run() == [True]

    assert step.run() == [True]


def test_claim_sent_twice_is_claimed_twice(shop: Shop) -> None:
    claim = shop.ports.store.claim("product[1]", "ab" * 8, lease_for=10)

    assert claim.run() == claim.run()


def test_begin_sent_twice_counts_one_attempt(shop: Shop) -> None:
    store = shop.ports.store
    store.claim("product[1]", "ab" * 8, lease_for=10).run()
    begin = store.begin([("product[1]", "ab" * 8, "cd" * 8, b"")], load_for=10)

    first, second = begin.run(), begin.run()

    assert first[0].attempts == second[0].attempts == 1


def test_failure_sent_twice_backs_off_once(shop: Shop) -> None:
    store = shop.ports.store
    store.claim("product[1]", "ab" * 8, lease_for=10).run()
    store.begin([("product[1]", "ab" * 8, "cd" * 8, b"")], load_for=10).run()
    fail = store.fail([("product[1]", "cd" * 8, "E", "no")], first_for=5, most_for=60)

    assert fail.run() == fail.run() == [True]

    assert store.failures("product[1]").run()["count"] == "1"


def test_loads_that_give_their_lease_back_are_no_poison(shop: Shop) -> None:
    """Attempts count loads that died with their worker; an orderly end without a result, such as conflicts, is none."""
    store = shop.ports.store
    counted = []
    for n in range(5):
        store.claim("product[1]", "ab" * 8, lease_for=10).run()
        [begun] = store.begin([("product[1]", "ab" * 8, f"{n:016x}", b"")], load_for=10).run()
        counted.append(begun.attempts)

        store.release([("product[1]", f"{n:016x}")]).run()

    assert counted == [1] * 5


def test_loads_that_invalidations_break_off_are_no_poison(shop: Shop) -> None:
    """A slow load of what changes often is begun again and again, by one process or by many; none of them has died."""
    store = shop.ports.store
    counted = []
    for n in range(6):
        store.claim("product[1]", f"{n:016x}", lease_for=10).run()
        [begun] = store.begin([("product[1]", f"{n:016x}", f"{n:015x}f", b"")], load_for=10).run()
        counted.append(begun.attempts)

        shop.product.invalidate(1)

    assert counted == [1] * 6


@pytest.mark.parametrize("how", ["its lease ran out", "its message came again"])
def test_loads_that_die_are_counted(shop: Shop, how: str) -> None:
    store = shop.ports.store
    client: Any = store.link.client()
    is_again = how == "its message came again"
    counted = []
    for n in range(4):
        store.claim("product[1]", "ab" * 8, lease_for=10).run()
        asked = [("product[1]", "ab" * 8, f"{n:016x}", b"")]
        [begun] = store.begin(asked, load_for=10, is_redelivered=is_again).run()
        counted.append(begun.attempts)
        if not is_again:
            # Its time is over: the lease has gone, and the count's note of when that would be lies in the past.
            client.delete(store.keys.lease("product[1]"))
            count, until_ms, *_ = client.get(store.keys.attempts("product[1]")).split()
            client.set(store.keys.attempts("product[1]"), f"{int(count)} {int(until_ms) - 3_600_000} 0 1")

    assert counted == [1, 2, 3, 4]


def test_claim_names_the_version_that_was_seen(shop: Shop) -> None:
    """A reader that was slow after a stale hit must not start a second load right after the first."""
    shop.loader().finish()
    seen = shop.seen()
    shop.product.invalidate(1)
    shop.loader().finish()

    claim = shop.ports.store.claim("product[1]", "ab" * 8, lease_for=10, seen=seen).run()

    assert type(claim).__name__ == "Moved"


def test_lease_that_has_begun_is_never_taken_over(shop: Shop) -> None:
    store = shop.ports.store
    store.claim("product[1]", "aa" * 8, lease_for=10).run()
    store.begin([("product[1]", "aa" * 8, "cd" * 8, b"")], load_for=10).run()

    claim = store.claim("product[1]", "bb" * 8, lease_for=10, expected="aa" * 8).run()

    assert type(claim).__name__ == "Held"


def test_lease_is_taken_over_once(shop: Shop) -> None:
    store = shop.ports.store
    store.claim("product[1]", "aa" * 8, lease_for=10).run()
    first = store.claim("product[1]", "bb" * 8, lease_for=10, expected="aa" * 8).run()

    second = store.claim("product[1]", "cc" * 8, lease_for=10, expected="bb" * 8).run()

    assert (type(first).__name__, type(second).__name__) == ("Claimed", "Held")


def warm(shop: Shop, token: str) -> str:
    """A round of warming claims product[1]; what that comes to."""
    [claim] = shop.ports.store.claim_many([("product[1]", token, shop.seen())], lease_for=30, warms=True).run()
    return type(claim).__name__


def test_who_does_not_warm_takes_a_warm_lease_immediately(shop: Shop) -> None:
    """Its message waits behind all that is warmed; the one that a reader sends does not.  The warm one is left."""
    store = shop.ports.store
    warm(shop, "aa" * 8)

    claim = store.claim("product[1]", "bb" * 8, lease_for=10).run()

    assert type(claim).__name__ == "Claimed"
    assert store.begin([("product[1]", "aa" * 8, "cd" * 8, b"")], load_for=10).run() == [None]
    assert store.begin([("product[1]", "bb" * 8, "ef" * 8, b"")], load_for=10).run() != [None]


def test_a_warm_lease_that_has_begun_is_held_as_any_other(shop: Shop) -> None:
    store = shop.ports.store
    warm(shop, "aa" * 8)
    store.begin([("product[1]", "aa" * 8, "cd" * 8, b"")], load_for=10).run()

    claim = store.claim("product[1]", "bb" * 8, lease_for=10, expected="aa" * 8).run()

    assert type(claim).__name__ == "Held"
    assert claim.is_begun


def test_who_warms_takes_nothing(shop: Shop) -> None:
    store = shop.ports.store
    warm(shop, "aa" * 8)
    another = warm(shop, "bb" * 8)
    store.claim("product[1]", "cc" * 8, lease_for=10).run()

    assert (another, warm(shop, "dd" * 8)) == ("Held", "Held")
    lease = store.lease("product[1]").run()
    assert (lease.get("token"), lease.keys() - {"token", "left_ms"}) == ("cc" * 8, set()), "and it is warm no more"


def test_a_lease_that_was_taken_from_who_warms_is_another_reader_s_like_any_other(shop: Shop) -> None:
    """Held, and taken over once when nobody begins."""
    store = shop.ports.store
    warm(shop, "aa" * 8)
    store.claim("product[1]", "bb" * 8, lease_for=10).run()

    second = store.claim("product[1]", "cc" * 8, lease_for=10).run()
    over = store.claim("product[1]", "dd" * 8, lease_for=10, expected="bb" * 8).run()
    again = store.claim("product[1]", "ee" * 8, lease_for=10, expected="dd" * 8).run()

    assert type(second).__name__ == "Held"
    assert not second.is_taken_over
    assert (type(over).__name__, type(again).__name__) == ("Claimed", "Held")


def test_a_warm_lease_that_is_taken_over_to_be_loaded_here_is_taken_over_once(shop: Shop) -> None:
    """A reader whose time is over loads for itself: nobody may take that from it, though it was a warm one."""
    store = shop.ports.store
    warm(shop, "aa" * 8)
    store.claim("product[1]", "bb" * 8, lease_for=10, expected="aa" * 8).run()

    again = store.claim("product[1]", "cc" * 8, lease_for=10, expected="bb" * 8).run()

    assert type(again).__name__ == "Held"
    assert again.is_taken_over


def test_claims_of_warm_leases_may_be_sent_twice(shop: Shop) -> None:
    """Whichever reply was late: what was taken is not taken back, and what was claimed is claimed again."""
    store = shop.ports.store
    warming = store.claim_many([("product[1]", "aa" * 8, b"")], lease_for=10, warms=True)
    taking = store.claim("product[1]", "bb" * 8, lease_for=10)

    answers = [type(claim).__name__ for claim in (*warming.run(), *warming.run(), taking.run(), taking.run())]
    late = warming.run()

    assert answers == ["Claimed"] * 4
    assert type(late[0]).__name__ == "Held"


def test_who_warms_gives_back_nothing_that_was_taken(shop: Shop) -> None:
    """Its message could not be sent, or was: the lease is another's by then."""
    store = shop.ports.store
    warm(shop, "aa" * 8)
    store.claim("product[1]", "bb" * 8, lease_for=10).run()

    assert store.release([("product[1]", "aa" * 8)]).run() == 0
    assert store.lease("product[1]").run()["token"] == "bb" * 8


def test_begin_claims_again_when_an_invalidation_broke_the_lease(shop: Shop) -> None:
    """Readers may be waiting for this very load: nothing was there, so the invalidation pushed nothing."""
    load = shop.loader()
    shop.product.invalidate(1)

    load.finish()

    assert shop.stored() == (1, "fresh")


def test_soften_of_a_missing_entry_creates_nothing(shop: Shop) -> None:
    """SETRANGE on a key that is gone creates an immortal one."""
    assert shop.ports.store.soften(["product[1]"]).run() == 0

    assert shop.ports.store.get("product[1]").run() is None


def test_number_of_an_invalidation_exceeds_any_snapshot_after_seq_is_lost(shop: Shop) -> None:
    """A failover may lose increments: the clock keeps numbers rising."""
    store = shop.ports.store
    before = [store.next_seq().run() for _ in range(3)][-1]
    store.link.client().delete(store.keys.seq)
    wait_until(lambda: store.snapshot().run().now * 1000 > before)

    assert store.next_seq().run() > before


def test_lost_sequence_does_not_stop_loads_from_being_written(shop: Shop) -> None:
    shop.invalidator().finish()
    shop.ports.store.link.client().delete(shop.ports.store.keys.seq)

    shop.loader().finish()

    assert shop.stored() == (1, "fresh")


def test_racing_push_wins_over_a_fill(shop: Shop) -> None:
    """L1 fill guard: GET returns v1; the push for v2 is processed; v1 must not be inserted."""
    shop.loader().finish()
    shop.ports.listener.start()
    wait_until(lambda: shop.ports.listener.is_up)
    call = shop.product._bind((1,), {})
    options = shop.product._memory.options(call, (1,))
    read = Stepper(reading.read(shop.ports, shop.spec, call, options)).until("get")
    raw = read._step.run()
    shop.price = 2
    shop.product.invalidate(1)
    read._advance(lambda: read._flow.send(raw))

    assert read.finish().value == 1
    assert shop.ports.l1.get("product[1]") is None


def test_expired_members_are_swept_and_live_ones_stay(shop: Shop, cache: Cache) -> None:
    store = shop.ports.store
    shop.loader().finish()
    store.link.client().zadd(store.keys.tag_set("product:1"), {"product[9]": 1})

    done = cache.collect_garbage()

    assert done.members == 1
    assert shop.members() == ["product[1]"]


def test_a_second_soft_invalidation_does_not_prolong_what_the_first_has_left(cache: Cache) -> None:
    """What is stale may be served until `stale_for` after it was first made so."""
    shop = Shop(cache)
    shop.product.get(1)
    store = shop.ports.store

    def stale_until() -> float:
        return envelope.unpack(store.get("product[1]").run()).stale_until

    cache.invalidate("products", mode="soft")
    first, began = stale_until(), store.snapshot().run().now
    wait_until(lambda: store.snapshot().run().now > began + 0.01)

    cache.invalidate("products", mode="soft")

    assert stale_until() == first
