#!lua flags=allow-oom
-- mark_soft.lua: begin a soft invalidation of one tag: mark it, and leave its set where it is.
--
-- KEYS[1]  last invalidation
-- ARGV[1]  n
-- Returns  n, or the newer number that is there
-- Soft takes nothing out of the tag set: a live entry must always be findable by the next invalidation.
local last, n = KEYS[1], tonumber(ARGV[1])

local there = tonumber(redis.call("GET", last) or "0") or 0  -- what is no number is overwritten
if there < n then
  redis.call("SET", last, string.format("%.0f", n))
  return n
end
return there
