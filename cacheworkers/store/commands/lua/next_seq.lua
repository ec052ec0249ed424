#!lua flags=allow-oom
-- next_seq.lua: draw the number of a new invalidation.
--
-- KEYS[1]  seq
-- Returns  n = max(seq + 1, the server's clock in ms)
-- Never a plain INCR: after a failover that lost increments, it would repeat numbers that loads have already seen.
local seq = KEYS[1]

local function number_of(text)  -- what something else has written there counts as none
  local number = tonumber(text or "0") or 0
  return (number >= 0 and number <= 2 ^ 53 and number == math.floor(number)) and number or 0
end

local time = redis.call("TIME")
local n = math.max(number_of(redis.call("GET", seq)) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call("SET", seq, string.format("%.0f", n))
return n
