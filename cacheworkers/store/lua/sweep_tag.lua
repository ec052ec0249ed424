#!lua flags=allow-oom
-- sweep_tag.lua: drop the expired members of one tag set, a bounded number at a time.
--
-- KEYS[1]  tag set   KEYS[2]  last invalidation
-- ARGV[1]  most members to drop   ARGV[2]  how old, in ms, an invalidation's mark must be to be dropped
-- Returns  {members dropped, 1 if the mark was dropped}
-- Atomic because a member found expired may be registered anew before it is removed.
-- By score only, never because the entry does not exist: a registered member's write may still come.
local tag_set, last = KEYS[1], KEYS[2]
local most, kept_for_ms = tonumber(ARGV[1]), tonumber(ARGV[2])

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = redis.call("ZRANGEBYSCORE", tag_set, "-inf", string.format("(%.0f", now_ms), "LIMIT", 0, most)
if #expired > 0 then
  redis.call("ZREM", tag_set, unpack(expired))
end
local mark = redis.call("GET", last)
if mark and tonumber(mark) < now_ms - kept_for_ms then
  redis.call("DEL", last)
  return {#expired, 1}
end
return {#expired, 0}
