#!lua flags=allow-oom
-- remove_drained.lua: take members out of a detached set, after their entries are deleted, or together with them.
--
-- KEYS[1]  detached set   KEYS[2]  index of detached sets
-- KEYS[3..]  where one server has all keys: the leases and failures of the members, and then their entries
-- ARGV[1]  how many members to return   ARGV[2]  how many of the keys are leases and failures
-- ARGV[3..]  the members to take out
-- Returns  {how many entries there were, some of the members that are left}; none when the set is empty
-- Atomic so that the index loses a detached set only when it is empty.
-- The order is the protocol's: what cannot be deleted stays a member.
local detached, index = KEYS[1], KEYS[2]
local most, leases = tonumber(ARGV[1]), tonumber(ARGV[2])

local entries = 0
if #KEYS > 2 then
  redis.call("UNLINK", unpack(KEYS, 3, 2 + leases))
  entries = redis.call("UNLINK", unpack(KEYS, 3 + leases))
end
if #ARGV > 2 then
  redis.call("ZREM", detached, unpack(ARGV, 3))
end
local left = redis.call("ZRANGE", detached, 0, most - 1)
if #left == 0 then
  redis.call("SREM", index, detached)
end
return {entries, left}
