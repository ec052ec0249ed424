#!lua flags=allow-oom
-- release.lua: give a lease back that this token or fence holds.
--
-- KEYS[1]  lease     KEYS[2]  attempts
-- ARGV[1]  token, or the fence of a load that has begun
-- Returns  1 released, 0 another's or gone
-- Atomic because the lease may change hands between the check and the DEL.
-- A load that gives its lease back has not died with its worker: its attempts are forgotten.
local lease, attempts, name = KEYS[1], KEYS[2], ARGV[1]

local held = redis.call("HMGET", lease, "token", "fence")
if held[2] == name then
  redis.call("DEL", lease, attempts)
  return 1
end
if held[1] == name and not held[2] then
  redis.call("DEL", lease)
  return 1
end
return 0
