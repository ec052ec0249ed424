"""What the beats of these tests run: a task of one's own, sent many times a second, and the upkeep of the library."""

from __future__ import annotations

import os

from celery import Celery

from cacheworkers import Cache, Config

app = Celery("beating", broker=os.environ["BROKER_URL"])
app.conf.beat_schedule = {
    "often": {"task": "often", "schedule": 0.1, "options": {"queue": "often"}},
    "daily": {"task": "daily", "schedule": 86400.0, "options": {"queue": "daily"}},
}
cache = Cache(Config.from_env(store_timeout=0.5, breaker_for=0.1), celery=app)
