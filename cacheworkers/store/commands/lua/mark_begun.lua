#!lua flags=allow-oom
-- mark_begun.lua: say that a load has begun under its claim's token, if it still holds the lease.
--
-- KEYS[1]  lease     KEYS[2]  attempts
-- ARGV[1]  token     ARGV[2]  load_for_ms
-- Returns  1 marked, 0 another's, begun or gone
-- Atomic because a lease that was broken must not be made again: the load under way would look unbroken.
-- As begin.lua does it extends the lease and counts the attempt, the first: else the claim had taken no snapshot.
local lease, attempts = KEYS[1], KEYS[2]
local token, load_for_ms = ARGV[1], tonumber(ARGV[2])

local held = redis.call("HMGET", lease, "token", "fence")
if held[1] ~= token or held[2] then
  return 0
end
redis.call("HSET", lease, "fence", token)
redis.call("PEXPIRE", lease, load_for_ms)
local time = redis.call("TIME")
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + load_for_ms
redis.call("SET", attempts, string.format("1 %.0f 0 1", until_ms), "PX", 10 * load_for_ms)
return 1
