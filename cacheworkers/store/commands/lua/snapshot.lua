#!lua flags=no-writes
-- snapshot.lua: read the invalidation sequence and the clock, before the data is read.
--
-- KEYS[1]  seq
-- Returns  {seq, now_ms}
-- Atomic so that the instants of an entry belong to its sequence number.
local time = redis.call("TIME")
return {tonumber(redis.call("GET", KEYS[1]) or "0"), time[1] * 1000 + math.floor(time[2] / 1000)}
