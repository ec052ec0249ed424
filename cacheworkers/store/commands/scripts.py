"""The Lua scripts: each a file with a header that says what it takes, returns, and why it is atomic."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from cacheworkers.store.connections.request import Script


def _read(name: str) -> Script:
    source = files("cacheworkers.store.commands").joinpath("lua", f"{name}.lua").read_bytes()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


CLAIM = _read("claim")
BEGIN = _read("begin")
MARK_BEGUN = _read("mark_begun")
WRITE = _read("write")
FAIL = _read("fail")
RELEASE = _read("release")
OFFER = _read("offer")
TURN = _read("turn")
SNAPSHOT = _read("snapshot")
REGISTER = _read("register")
REGISTER_WRITE = _read("register_write")
RAISE_SEQ = _read("raise_seq")
NEXT_SEQ = _read("next_seq")
DETACH = _read("detach")
MARK_SOFT = _read("mark_soft")
SOFTEN = _read("soften")
REMOVE_DRAINED = _read("remove_drained")
TRIM_TAG = _read("trim_tag")
ADD_ACCESSES = _read("add_accesses")
WAIT_MARKER = _read("wait_marker")
DECLARE_SHARDS = _read("declare_shards")
