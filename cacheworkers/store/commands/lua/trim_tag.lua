#!lua flags=allow-oom
-- trim_tag.lua: drop the expired members of one tag set, a bounded number at a time.
--
-- KEYS[1]  tag set   KEYS[2]  last invalidation
-- ARGV[1]  most members to drop   ARGV[2]  how old, in ms, an invalidation's mark must be to be dropped
-- Returns  {members dropped, 1 if the mark was dropped, 1 if the tag set is foreign, 1 if the mark is}
-- Atomic because a member found expired may be registered again before it is removed.
-- By score only, never because the entry does not exist: a registered member's write may still come.
-- What is foreign, of another type or no number, stays as it is.
local tag_set, last = KEYS[1], KEYS[2]
local most, kept_for_ms = tonumber(ARGV[1]), tonumber(ARGV[2])

local function is_foreign(reply)
  return type(reply) == "table" and reply.err and string.find(reply.err, "WRONGTYPE", 1, true)
end

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = redis.pcall("ZRANGEBYSCORE", tag_set, "-inf", string.format("(%.0f", now_ms), "LIMIT", 0, most)
local set_is_foreign, mark_is_foreign, mark_dropped = 0, 0, 0
if is_foreign(expired) then
  expired, set_is_foreign = {}, 1
elseif expired.err then
  return expired
end
if #expired > 0 then
  redis.call("ZREM", tag_set, unpack(expired))
end
local mark = redis.pcall("GET", last)
if is_foreign(mark) or (type(mark) == "string" and not tonumber(mark)) then
  mark_is_foreign = 1
elseif type(mark) == "table" then
  return mark
elseif mark and tonumber(mark) < now_ms - kept_for_ms then
  redis.call("DEL", last)
  mark_dropped = 1
end
return {#expired, mark_dropped, set_is_foreign, mark_is_foreign}
