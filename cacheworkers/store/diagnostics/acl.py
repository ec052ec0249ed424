"""ACL: which commands and keys the store's user may use, found by trying each.

`ACL DRYRUN` would need more rights than the library does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from cacheworkers.core.keys import Keyspace

#: Command -> what follows the key; tried on a key that is not there, or is a string of zero bytes.
TRIED: Mapping[str, tuple[Any, ...]] = {
    "GET": (),
    "MGET": (),
    "SET": ("", "PX", 1000),
    "GETRANGE": (0, 1),
    "SETRANGE": (0, ""),
    "EXISTS": (),
    "PEXPIRE": (1000,),
    "PTTL": (),
    "HDEL": ("a",),
    "HGET": ("a",),
    "HGETALL": (),
    "HMGET": ("a",),
    "HSET": ("a", "b"),
    "SADD": ("a",),
    "SREM": ("a",),
    "SMEMBERS": (),
    "ZADD": (1, "a"),
    "ZCARD": (),
    "ZCOUNT": (0, 1),
    "ZRANGE": (0, 1),
    "ZRANGEBYSCORE": (0, 1),
    "ZREM": ("a",),
    "ZREMRANGEBYRANK": (0, 1),
    "ZREVRANGEBYSCORE": (1, 0),
    "ZSCAN": (0,),
    "ZSCORE": ("a",),
    "RENAME": (...,),
    "UNLINK": (),
    "DEL": (),
}
#: ... and those that take no key.
TRIED_ALONE: Mapping[str, tuple[Any, ...]] = {
    "INFO": ("server",),
    "TIME": (),
    "SCAN": (0, "COUNT", 1),
}


def denied(client: Any, keys: Keyspace, call: str) -> list[str]:
    """Return the commands, and the keys, that a client's user may not use.

    Commands are tried on a key of its own, which is deleted; of each kind of key, one is given to a script that does
    nothing with it.

    Args:
        call: of no loader.
    """
    key = keys.entry(call)
    kinds = _kinds(keys, call)
    try:
        found = [f"the key {each}" for each in kinds if _is_denied(client, "EVAL", "return 1", 1, each)]
        if len(found) == len(kinds):
            return ["EVAL, or every key of the namespace"]
        for command, more in TRIED.items():
            if _is_denied(client, command, key, *(key if word is ... else word for word in more)):
                found.append(command)
        found += [command for command, more in TRIED_ALONE.items() if _is_denied(client, command, *more)]
        if _is_denied(client, "EVALSHA", "0" * 40, 1, key):
            found.append("EVALSHA")
        return found
    finally:
        with contextlib.suppress(ResponseError):
            client.execute_command("UNLINK", key)


def _kinds(keys: Keyspace, call: str) -> list[str]:
    """Return one key of each kind."""
    of_call = [keys.entry(call), keys.lease(call), keys.failures(call), keys.attempts(call), keys.overtaken(call)]
    of_tag = [keys.tag_set(call), keys.last_invalidation(call), keys.detached_index(call)]
    of_loader = [keys.accesses(call), keys.forecasts(call), keys.turns(call)]
    return [*of_call, *of_tag, *of_loader, keys.beat(call), keys.seq, keys.run_id, keys.marks, keys.unstored]


def _is_denied(client: Any, *words: Any) -> bool:
    try:
        client.execute_command(*words)
    except NoPermissionError:
        return True
    except ResponseError as error:
        text = str(error)
        if text.startswith("unknown command") and words[0] not in text:  # not this one, but the connection's HELLO
            raise
        return text.startswith("unknown command")  # else of the wrong type, no such key: it was allowed
    return False
