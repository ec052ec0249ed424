#!lua flags=allow-oom
-- drained.lua: take members out of a detached set, after their entries are deleted.
--
-- KEYS[1]  detached set   KEYS[2]  index of detached sets
-- ARGV     the members
-- Returns  how many are left
-- Atomic so that the index loses a detached set only when it is empty.
local detached, index = KEYS[1], KEYS[2]

if #ARGV > 0 then
  redis.call("ZREM", detached, unpack(ARGV))
end
local left = redis.call("ZCARD", detached)
if left == 0 then
  redis.call("SREM", index, detached)
end
return left
