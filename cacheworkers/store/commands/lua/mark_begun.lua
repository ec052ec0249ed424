#!lua flags=allow-oom
-- mark_begun.lua: say that a load has begun under its claim's token, if it still holds the lease.
--
-- KEYS[1]  lease
-- ARGV[1]  token
-- Returns  1 marked, 0 another's, begun or gone
-- Atomic because a lease that was broken must not be made again: the load under way would look unbroken.
local lease, token = KEYS[1], ARGV[1]

local held = redis.call("HMGET", lease, "token", "fence")
if held[1] ~= token or held[2] then
  return 0
end
redis.call("HSET", lease, "fence", token)
return 1
