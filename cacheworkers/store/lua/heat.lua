#!lua flags=allow-oom
-- heat.lua: add reads to one loader's heat, which halves itself with time and keeps the hottest.
--
-- KEYS[1]  heat, a sorted set of calls   KEYS[2]  when it was last halved
-- ARGV[1]  half_life_ms   ARGV[2]  most members   ARGV[3...]  call, reads, call, reads, ...
-- Returns  members kept
-- Atomic because two processes that find the half-life over would both halve.
local heat, halved = KEYS[1], KEYS[2]
local half_life_ms, most = tonumber(ARGV[1]), tonumber(ARGV[2])

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.call("GET", halved) or "0")
if last == 0 then
  redis.call("SET", halved, string.format("%.0f", now_ms), "PX", 100 * half_life_ms)
elseif now_ms - last >= half_life_ms then
  local halves = math.floor((now_ms - last) / half_life_ms)
  redis.call("ZUNIONSTORE", heat, 1, heat, "WEIGHTS", tostring(0.5 ^ halves))
  redis.call("ZREMRANGEBYSCORE", heat, "-inf", "(0.5")
  redis.call("SET", halved, string.format("%.0f", last + halves * half_life_ms), "PX", 100 * half_life_ms)
end
for at = 3, #ARGV, 2 do
  redis.call("ZINCRBY", heat, ARGV[at + 1], ARGV[at])
end
redis.call("ZREMRANGEBYRANK", heat, 0, -(most + 1))
redis.call("PEXPIRE", heat, 100 * half_life_ms)
return redis.call("ZCARD", heat)
