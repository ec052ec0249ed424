#!lua flags=allow-oom
-- release.lua: give a lease back that this token or fence holds.
--
-- KEYS[1]  lease
-- ARGV[1]  token, or the fence of a load that has begun
-- Returns  1 released, 0 another's or gone
-- Atomic because the lease may change hands between the check and the DEL.
local lease, name = KEYS[1], ARGV[1]

local held = redis.call("HMGET", lease, "token", "fence")
if (held[1] == name and not held[2]) or held[2] == name then
  redis.call("DEL", lease)
  return 1
end
return 0
