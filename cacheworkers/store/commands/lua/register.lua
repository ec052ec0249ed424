#!lua
-- register.lua: put a call into one tag's set, and say when the tag was last invalidated.
--
-- KEYS[1]  tag set   KEYS[2]  last invalidation
-- ARGV[1]  call      ARGV[2]  kept_for_ms: the entry's life, and a margin longer than the load
-- Returns  {v, now_ms}: v the sequence number of the last invalidation, 0 for none
-- Atomic because an invalidation between the two would neither find the call nor be seen.
-- GT: a later load with a shorter life must not shorten what an earlier write may still need.
local tag_set, last = KEYS[1], KEYS[2]
local call, kept_for_ms = ARGV[1], tonumber(ARGV[2])

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call("ZADD", tag_set, "GT", string.format("%.0f", now_ms + kept_for_ms), call)
local mark = tonumber(redis.call("GET", last) or "0")
if not mark then
  -- Whether the tag has been invalidated is not known, so nothing is stored until the next invalidation marks it.
  return redis.error_reply("WRONGTYPE the mark of an invalidation is no number")
end
return {mark, now_ms}
