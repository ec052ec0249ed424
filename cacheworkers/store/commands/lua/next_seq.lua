#!lua flags=allow-oom
-- next_seq.lua: draw the number of a new invalidation.
--
-- KEYS[1]  seq
-- Returns  n = max(seq + 1, the server's clock in ms)
-- Never a plain INCR: after a failover that lost increments, it would repeat numbers that loads have already seen.
local seq = KEYS[1]

local time = redis.call("TIME")
local n = math.max(tonumber(redis.call("GET", seq) or "0") + 1, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call("SET", seq, string.format("%.0f", n))
return n
