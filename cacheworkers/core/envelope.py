"""bytes <-> Entry: a fixed header, then call, tags and the payload, untouched.

The header is binary and fixed, so that a reader decides without decoding, a claim compares versions in the store, and
a soft invalidation is one `SETRANGE`.  Scripts know three numbers of it, given to them as arguments: the magic, and
the offsets of the instants and of the version.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from typing import cast

import msgspec

from cacheworkers.core.entry import Entry
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT, fits
from cacheworkers.errors import EnvelopeError


class OtherFingerprint(EnvelopeError):
    """An entry of another release; it carries it."""

    def __init__(self, message: str, entry: Entry) -> None:
        super().__init__(message)
        self.entry = entry


MAGIC = b"CWE\x03"  # the last byte is the layout's version
CODEC_JSON = 1
NEGATIVE = 1
UNSHARED = 2
#: -log of the least chance that a random float in (0, 1] can be, rounded up.
_LONGEST_CHANCE = 37.0

# magic, flags, codec, len(call), load_ms, stale_for_ms,
# created, fresh_until, stale_until, expires_at, seq, write_id, digest, fingerprint, len(tags)
_HEADER = struct.Struct(">4sBBHIQQQQQQ8s8s8sI")
#: The same, but for what a fresh entry is not asked for; magic, flags and codec are one text.
_read_fresh_header = struct.Struct(">6sHI16xQ40x8sI").unpack_from
_READABLE = (MAGIC + bytes((0, CODEC_JSON)), MAGIC + bytes((NEGATIVE, CODEC_JSON)))
_INSTANT = struct.Struct(">Q")
_CREATED_AT = 20
SEQ_AT = 52
FRESH_UNTIL_AT = 28
WRITE_ID_AT = 60
#: What shows whether an entry is still the same: its instants, its number and its version.
LIFE_AT, LIFE_ENDS_AT = FRESH_UNTIL_AT, WRITE_ID_AT + 8
_LIFE = struct.Struct(">QQ16x8s")
HEADER_BYTES = _HEADER.size


def digest_of(payload: bytes) -> bytes:
    """Return 8 bytes that distinguish payloads; equal payloads have the same, whoever loaded them."""
    return hashlib.blake2b(payload, digest_size=8).digest()


def pack(entry: Entry) -> bytes:
    """Return the envelope of an entry; instants are rounded down to milliseconds."""
    call = entry.call.encode()
    tags = "\n".join(entry.tags).encode()
    header = _HEADER.pack(
        MAGIC,
        (NEGATIVE if entry.is_negative else 0) | (UNSHARED if entry.is_unshared else 0),
        CODEC_JSON,
        len(call),
        min(int(entry.load_time * 1000), 0xFFFFFFFF),
        int(entry.stale_for * 1000),
        int(entry.created * 1000),
        int(entry.fresh_until * 1000),
        int(entry.stale_until * 1000),
        int(entry.expires_at * 1000),
        entry.seq,
        entry.write_id,
        entry.digest,
        entry.fingerprint,
        len(tags),
    )
    return b"".join((header, call, tags, entry.payload))


def unpack(raw: bytes) -> Entry:
    """Return the entry of an envelope.

    Raises:
        EnvelopeError: foreign bytes, another layout, or cut short.
    """
    try:
        (
            magic,
            flags,
            codec,
            call_len,
            load_ms,
            stale_for_ms,
            created,
            fresh,
            stale,
            expires,
            seq,
            write_id,
            digest,
            fingerprint,
            tags_len,
        ) = _HEADER.unpack_from(raw)
    except struct.error:
        raise EnvelopeError(f"an envelope has at least {HEADER_BYTES} bytes, got {len(raw)}") from None
    if magic != MAGIC:
        raise EnvelopeError(f"an envelope starts with {MAGIC!r}, got {magic!r}")
    tags_at = HEADER_BYTES + call_len
    payload_at = tags_at + tags_len
    if codec != CODEC_JSON or payload_at > len(raw):
        raise EnvelopeError(f"codec must be {CODEC_JSON} and the body whole, got codec {codec}, {len(raw)} bytes")
    try:
        call = raw[HEADER_BYTES:tags_at].decode()
        tags = tuple(raw[tags_at:payload_at].decode().split("\n")) if tags_len else ()
    except UnicodeDecodeError as error:
        raise EnvelopeError(f"call and tags must be UTF-8: {error}") from None
    return Entry(
        call,
        tags,
        raw[payload_at:],
        created / 1000,
        fresh / 1000,
        stale / 1000,
        expires / 1000,
        stale_for_ms / 1000,
        load_ms / 1000,
        seq,
        write_id,
        digest,
        bool(flags & NEGATIVE),
        fingerprint,
        bool(flags & UNSHARED),
    )


def entry_of(raw: bytes, call: str, fingerprint: bytes) -> Entry:
    """Return the entry of an envelope that a reader of this call and fingerprint may decode, fresh or not.

    Raises:
        OtherFingerprint: another release wrote it, for which call or JSON have another meaning.
        EnvelopeError: it cannot be read, or says that it is another call's.
    """
    entry = unpack(raw)
    if entry.call != call:
        raise EnvelopeError(f"the entry of {call} says it is {entry.call}")
    if not fits(entry.fingerprint, fingerprint):
        raise OtherFingerprint(
            f"the entry of {call} is of a release with another return type, parameters or tags", entry
        )
    return entry


def fresh_payloads(
    raws: list[bytes | None], now: float, since: int, beta: float, fingerprint: bytes = NO_FINGERPRINT
) -> list[bytes | None]:
    """Return the payload of each envelope that is fresh, of a schema, and not older than `since`; None of any other.

    For many together: it makes no Entry, and takes the call's name on trust, since its key has it too.  What might be
    revalidated early (`Entry.early_at`) is none of these, and what is cut short is none or is no JSON.
    """
    if since:
        raws = [raw if raw is not None and int.from_bytes(raw[SEQ_AT : SEQ_AT + 8]) >= since else None for raw in raws]
    try:
        return _fresh_payloads(cast(list[bytes], raws), now, beta, fingerprint)
    except (TypeError, struct.error):  # one is None, or has no whole header
        whole = [raw is not None and len(raw) >= HEADER_BYTES for raw in raws]
        payloads = iter(_fresh_payloads(cast(list[bytes], [*itertools.compress(raws, whole)]), now, beta, fingerprint))
        return [next(payloads) if is_whole else None for is_whole in whole]


def fresh_payload(raw: bytes, call: str, now: float, since: int, load_times: int, fingerprint: bytes) -> bytes | None:
    """Return the payload of a call's envelope that is fresh, of a schema, and not older than `since`; else None.

    It makes no Entry.  What might be revalidated early (`Entry.early_at`) is none of these.

    Args:
        load_times: `load_times_before`.
    """
    try:
        kind, call_len, load_ms, fresh, theirs, tags_len = _read_fresh_header(raw)
    except struct.error:
        return None
    tags_at = HEADER_BYTES + call_len
    if (
        kind not in _READABLE
        or fresh - load_ms * load_times <= now * 1000.0
        or raw[HEADER_BYTES:tags_at] != call.encode()
        or (since and int.from_bytes(raw[SEQ_AT : SEQ_AT + 8]) < since)
        or (theirs != fingerprint and not fits(theirs, fingerprint))
    ):
        return None
    return raw[tags_at + tags_len :] or None


def load_times_before(beta: float) -> int:
    """Return how many times its load's time before it goes stale an entry may be revalidated early, rounded up."""
    return math.ceil(_LONGEST_CHANCE * beta)


def _fresh_payloads(raws: list[bytes], now: float, beta: float, fingerprint: bytes) -> list[bytes | None]:
    # Whole numbers: to compare one with a fraction takes several times as long.
    now_ms, load_times = math.floor(now * 1000), load_times_before(beta)
    readable, header_bytes, fits_all = _READABLE, HEADER_BYTES, NO_FINGERPRINT
    return [
        (raw[header_bytes + call_len + tags_len :] or None)
        if kind in readable
        and now_ms + load_ms * load_times < fresh
        and (theirs == fingerprint or theirs == fits_all or fingerprint == fits_all)
        else None
        for raw, (kind, call_len, load_ms, fresh, theirs, tags_len) in zip(
            raws, map(_read_fresh_header, raws), strict=True
        )
    ]


def created_of(raw: bytes) -> float:
    """Return when the load of an envelope began, seconds; the header is one that `fresh_payloads` has read."""
    created: int
    [created] = _INSTANT.unpack_from(raw, _CREATED_AT)
    return created / 1000


class Head(msgspec.Struct, frozen=True, gc=False):
    """What an envelope's header says about an entry's life, for callers that read many; see `Entry`."""

    created: float
    fresh_until: float
    load_time: float
    fingerprint: bytes = NO_FINGERPRINT


def head_of(raw: bytes | None) -> Head | None:
    """Return the head of an envelope, of which the header is enough; None for none, or for what cannot be read."""
    if raw is None or len(raw) < HEADER_BYTES:
        return None
    magic, _, codec, _, load_ms, _, created, fresh, *_, fingerprint, _ = _HEADER.unpack_from(raw)
    if magic != MAGIC or codec != CODEC_JSON:
        return None
    return Head(created / 1000, fresh / 1000, load_ms / 1000, fingerprint)


def is_life_of(life: bytes, entry: Entry) -> bool:
    """Return whether the bytes of an envelope from LIFE_AT to LIFE_ENDS_AT are this entry's."""
    if len(life) != _LIFE.size:
        return False
    fresh, stale, write_id = _LIFE.unpack(life)
    same: bool = write_id == entry.write_id and fresh / 1000 == entry.fresh_until and stale / 1000 == entry.stale_until
    return same


def version_of(raw: bytes | None) -> bytes:
    """Return the version that a claim names: what the scripts see in these bytes, readable or not."""
    return raw[WRITE_ID_AT : WRITE_ID_AT + 8] if raw and raw[:4] == MAGIC else b""
