#!lua flags=no-writes
-- snapshot.lua: read the invalidation sequence and the clock, before the data is read.
--
-- KEYS[1]  seq
-- Returns  {seq, now_ms}
-- Atomic so that the instants of an entry belong to its sequence number.
local function number_of(text)  -- what something else has written there counts as none
  local number = tonumber(text or "0") or 0
  return (number >= 0 and number <= 2 ^ 53 and number == math.floor(number)) and number or 0
end

local time = redis.call("TIME")
return {number_of(redis.call("GET", KEYS[1])), time[1] * 1000 + math.floor(time[2] / 1000)}
