#!lua flags=allow-oom
-- detach.lua: invalidate one tag hard: mark it, and put its set aside to be drained.
--
-- KEYS[1]  tag set   KEYS[2]  last invalidation   KEYS[3]  index of detached sets
-- KEYS[4]  a name for the detached set, new at each call
-- ARGV[1]  n
-- Returns  all detached sets of the tag, this one's and others'
-- Atomic because a load that registers between mark and rename would be in neither.
-- The rename never goes onto an existing key: sent twice (a client's reply was late), it would
-- overwrite the set it made.
local tag_set, last, index, name = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local n = tonumber(ARGV[1])

if tonumber(redis.call("GET", last) or "0") < n then
  redis.call("SET", last, string.format("%.0f", n))
end
if redis.call("EXISTS", tag_set) == 1 then
  while redis.call("EXISTS", name) == 1 do
    name = name .. "+"
  end
  redis.call("RENAME", tag_set, name)
  redis.call("SADD", index, name)
end
return redis.call("SMEMBERS", index)
