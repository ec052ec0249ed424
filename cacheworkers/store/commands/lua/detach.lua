#!lua flags=allow-oom
-- detach.lua: invalidate tags hard: mark them, and detach their sets so that they can be drained.
--
-- Of each tag, four in a row:
-- KEYS[1]  tag set   KEYS[2]  last invalidation   KEYS[3]  index of detached sets
-- KEYS[4]  a name for the detached set, new at each call
-- The last of KEYS  seq, where the number is drawn here
-- ARGV[1]  n, or "": drawn here, as next_seq.lua does, where one server has all keys
-- ARGV[2]  how many members to return
-- Returns  {n, of each tag {all detached sets of the tag, this one's and older ones, some members of this one}}
-- Atomic because a load that registers between mark and rename would be in neither.
-- The rename never goes onto an existing key: sent twice (a client's reply was late), it would
-- overwrite the set it made.
local n, most = tonumber(ARGV[1]), tonumber(ARGV[2])

local function number_of(text)  -- what something else has written there counts as none
  local number = tonumber(text or "0") or 0
  return (number >= 0 and number <= 2 ^ 53 and number == math.floor(number)) and number or 0
end

local function detach(tag_set, last, index, name)
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
end

if not n then
  local seq, time = KEYS[#KEYS], redis.call("TIME")
  n = math.max(number_of(redis.call("GET", seq)) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call("SET", seq, string.format("%.0f", n))
end
local found = {n}
for at = 1, #KEYS - 3, 4 do
  found[#found + 1] = detach(KEYS[at], KEYS[at + 1], KEYS[at + 2], KEYS[at + 3])
end
return found
