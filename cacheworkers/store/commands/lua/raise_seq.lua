#!lua flags=allow-oom
-- raise_seq.lua: lift the sequence to a number seen at a tag; a failover may have lost increments.
--
-- KEYS[1]  seq
-- ARGV[1]  least
-- Returns  seq
-- Atomic because another invalidation may lift it further meanwhile.
local seq, least = KEYS[1], tonumber(ARGV[1])

local function number_of(text)  -- what something else has written there counts as none
  local number = tonumber(text or "0") or 0
  return (number >= 0 and number <= 2 ^ 53 and number == math.floor(number)) and number or 0
end

local now = number_of(redis.call("GET", seq))
if now < least then
  redis.call("SET", seq, string.format("%.0f", least))
  return least
end
return now
