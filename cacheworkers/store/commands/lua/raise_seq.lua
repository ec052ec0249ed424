#!lua flags=allow-oom
-- raise_seq.lua: lift the sequence to a number seen at a tag; a failover may have lost increments.
--
-- KEYS[1]  seq
-- ARGV[1]  least
-- Returns  seq
-- Atomic because another invalidation may lift it further meanwhile.
local seq, least = KEYS[1], tonumber(ARGV[1])

local now = tonumber(redis.call("GET", seq) or "0")
if now < least then
  redis.call("SET", seq, string.format("%.0f", least))
  return least
end
return now
