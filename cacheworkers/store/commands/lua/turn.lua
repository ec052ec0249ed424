#!lua flags=allow-oom
-- turn.lua: take the next turn of a loader with a rate limit.
--
-- KEYS[1]  when the turn after the last one taken begins, microseconds
-- ARGV[1]  interval_us: between two turns   ARGV[2]  most_us: how long the caller can wait
-- Returns  microseconds until the turn taken, or -1: it would be too late, none is taken
-- Atomic because of two callers each needs a turn of its own.
-- The generic cell rate algorithm (ITU-T I.371) without bursts.
local turns, interval_us, most_us = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])

local time = redis.call("TIME")
local now_us = time[1] * 1000000 + time[2]
local at_us = math.max(tonumber(redis.call("GET", turns) or "0"), now_us)
if at_us - now_us > most_us then
  return -1
end
local next_us = at_us + interval_us
redis.call("SET", turns, string.format("%.0f", next_us), "PX", math.ceil((next_us - now_us) / 1000) + 1000)
return at_us - now_us
