#!lua flags=allow-oom
-- drained.lua: take members out of a doomed set, after their entries are deleted.
--
-- KEYS[1]  doomed set   KEYS[2]  index of doomed sets
-- ARGV     the members
-- Returns  how many are left
-- Atomic so that the index loses a doomed set only when it is empty.
local doomed, index = KEYS[1], KEYS[2]

if #ARGV > 0 then
  redis.call("ZREM", doomed, unpack(ARGV))
end
local left = redis.call("ZCARD", doomed)
if left == 0 then
  redis.call("SREM", index, doomed)
end
return left
