#!lua flags=allow-oom
-- release.lua: give a lease back that this token or fence holds.
--
-- KEYS[1]  lease     KEYS[2]  attempts   KEYS[3]  failures
-- ARGV[1]  token, or the fence of a load that has begun
-- Returns  1 released, 0 another's or gone
-- Atomic because the lease may change hands between the check and the DEL.
-- A load that gives its lease back has not died with its worker: its attempts are forgotten.
-- One that was overtaken, and no longer holds a lease, is one less that is running.
-- The failures key is tracked: writing it, and leaving it as it was, wakes those who wait for this lease everywhere.
local lease, attempts, failures, name = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

local held = redis.call("HMGET", lease, "token", "fence")
local released = held[2] == name or (held[1] == name and not held[2])
if released then
  redis.call("DEL", lease)
  if held[2] then
    redis.call("DEL", attempts)
  end
else
  local before, running = string.match(redis.call("GET", attempts) or "", "^(%d+ %d+ %d) (%d+)$")
  if held[1] == name or not running or tonumber(running) < 1 then
    return 0
  end
  redis.call("SET", attempts, string.format("%s %d", before, running - 1), "KEEPTTL")
end
redis.call("HSET", failures, "released", "1")
redis.call("HDEL", failures, "released")
return released and 1 or 0
