#!lua flags=allow-oom
-- detach.lua: invalidate one tag hard: mark it, and detach its set so that it can be drained.
--
-- KEYS[1]  tag set   KEYS[2]  last invalidation   KEYS[3]  index of detached sets
-- KEYS[4]  a name for the detached set, new at each call
-- ARGV[1]  n         ARGV[2]  how many members to return
-- Returns  {all detached sets of the tag, this one's and older ones, some members of this one}
-- Atomic because a load that registers between mark and rename would be in neither.
-- The rename never goes onto an existing key: sent twice (a client's reply was late), it would
-- overwrite the set it made.
local tag_set, last, index, name = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local n, most = tonumber(ARGV[1]), tonumber(ARGV[2])

if (tonumber(redis.call("GET", last) or "0") or 0) < n then  -- what is no number is overwritten
  redis.call("SET", last, string.format("%.0f", n))
end
local members = {}
if redis.call("EXISTS", tag_set) == 1 then
  local free = name
  while redis.call("EXISTS", free) == 1 do
    free = free .. "+"
  end
  redis.call("RENAME", tag_set, free)
  redis.call("SADD", index, free)
  -- A set of another type is reported when it is drained: an error here would keep the older ones from it.
  if free == name then
    members = redis.pcall("ZRANGE", name, 0, most - 1)
    members = members.err and {} or members
  end
end
return {redis.call("SMEMBERS", index), members}
