"""A broker's password is shown nowhere, also where it is not percent-encoded and its URL is misread."""

from __future__ import annotations

import contextlib
import logging

import pytest
from celery import Celery

from cacheworkers import Cache, CacheworkersError, Config, Load
from cacheworkers.ops.doctor.diagnose import diagnose
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import free_port, wait_until

PARTS = ("lemon", "quince")


@pytest.mark.parametrize("between", ["/", "?", "#", "[", "@", "/?", "@quince/"])
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_no_part_of_a_password_is_shown(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, between: str, scheme: str
) -> None:
    """The log line, the event and doctor name the rule and the remedy instead."""
    app = Celery("shop", broker=f"{scheme}://shop:lemon{between}quince@127.0.0.1:{free_port()}/0", set_as_current=False)
    events: list[object] = []
    cache = Cache(Config(redis_url=valkey.url, namespace=f"pw{free_port()}"), celery=app, hook=events.append)

    @cache.loader(fresh_for=60)
    def product(load: Load, number: int) -> int:
        return number

    with caplog.at_level(logging.DEBUG, logger="cacheworkers"):
        assert product.get(1) == 1
        wait_until(lambda: "cannot be sent" in caplog.text)
        findings = diagnose(cache)
        with contextlib.suppress(CacheworkersError):
            cache.internals.runtime.workers.queue_states()
    cache.close()

    said = caplog.text + str(events) + str(findings)
    assert not [part for part in PARTS if part in said]
    assert "write it percent-encoded, %2F for /" in caplog.text
    assert {found.level for found in findings if found.check == "broker-away"} == {"error"}
    assert "check-failed" not in {found.check for found in findings}


def test_an_address_that_is_read_well_is_shown_without_its_password(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    app = Celery("shop", broker=f"redis://:lemon%2Fquince@127.0.0.1:{port}/0", set_as_current=False)
    cache = Cache(Config(redis_url=valkey.url, namespace=f"pw{port}"), celery=app)

    [away] = [found for found in diagnose(cache) if found.check == "broker-away"]

    cache.close()
    assert f"127.0.0.1:{port}" in str(away)
    assert not [part for part in PARTS if part in str(away) + caplog.text]
