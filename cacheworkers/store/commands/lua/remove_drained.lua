#!lua flags=allow-oom
-- remove_drained.lua: take members out of a detached set, after their entries are deleted.
--
-- KEYS[1]  detached set   KEYS[2]  index of detached sets
-- ARGV[1]  how many members to return
-- ARGV     the members to take out
-- Returns  some of those that are left; none when the set is empty
-- Atomic so that the index loses a detached set only when it is empty.
local detached, index = KEYS[1], KEYS[2]
local most = tonumber(ARGV[1])

if #ARGV > 1 then
  redis.call("ZREM", detached, unpack(ARGV, 2))
end
local left = redis.call("ZRANGE", detached, 0, most - 1)
if #left == 0 then
  redis.call("SREM", index, detached)
end
return left
