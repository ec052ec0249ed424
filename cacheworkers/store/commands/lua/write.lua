#!lua
-- write.lua: store an entry, unless its lease has been broken since the load began.
--
-- KEYS[1]  entry     KEYS[2]  lease     KEYS[3]  failures   KEYS[4]  attempts
-- ARGV[1]  fence, or the token of a lease under which no load has begun     ARGV[2]  envelope  ARGV[3]  expires_at_ms
-- ARGV[4]  version of this envelope     ARGV[5]  offset of the version
-- Returns  1 stored, 0 refused
-- Atomic because an invalidation may break the lease between the check and the SET.
-- By its token because a quick load does without begin.lua.  Once one has begun under the lease, only its fence counts.
-- The lease says on which server its load began.  On another, a failover may have kept the lease and lost the
-- registration that came after it: the entry would be in no tag set.  Refused, and the lease is given back.
-- Idempotent: the version in the store identifies a write that was already done.
local entry, lease, failures, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local fence, envelope, expires_at_ms, version, version_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local held = redis.call("HMGET", lease, "fence", "run", "token")
local holder = held[1] or held[3]  -- that of a quick load never begins
local is_here = held[2] == string.match(redis.call("INFO", "server"), "run_id:(%x+)")
if holder == fence and not is_here then
  redis.call("DEL", lease)
end
if holder ~= fence or not is_here then
  local there = redis.pcall("GETRANGE", entry, version_at, version_at + 7)
  return there == version and 1 or 0
end
redis.call("SET", entry, envelope, "PXAT", expires_at_ms)
redis.call("DEL", lease, failures, attempts)
return 1
