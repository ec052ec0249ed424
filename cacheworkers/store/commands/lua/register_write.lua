#!lua
-- register_write.lua: put a call into the sets of all its tags, and store its entry if none was invalidated since.
--
-- KEYS[1]  entry     KEYS[2]  lease     KEYS[3]  failures   KEYS[4]  attempts
-- KEYS[5..]  of each tag its set and its last invalidation
-- ARGV[1]  fence or token, as in write.lua   ARGV[2]  envelope  ARGV[3]  expires_at_ms
-- ARGV[4]  version of this envelope     ARGV[5]  offset of the version
-- ARGV[6]  call      ARGV[7]  kept_for_ms, as in register.lua   ARGV[8]  seq of the snapshot
-- Returns  {v, now_ms, 1 stored | 0 refused or overtaken}: v as of register.lua, of the youngest invalidation
-- Atomic for the reasons of register.lua and write.lua; one script because one server has all keys.
-- The order is the protocol's: all sets first, then the comparison, then the lease, then the entry.
-- Idempotent: as these two are.
local entry, lease, failures, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local fence, envelope, expires_at_ms, version, version_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local call, kept_for_ms, seq = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local score, newest = string.format("%.0f", now_ms + kept_for_ms), 0
for at = 5, #KEYS, 2 do
  redis.call("ZADD", KEYS[at], "GT", score, call)
  local mark = tonumber(redis.call("GET", KEYS[at + 1]) or "0")
  if not mark then
    return redis.error_reply("WRONGTYPE the mark of an invalidation is no number")
  end
  newest = math.max(newest, mark)
end
if newest > seq then
  return {newest, now_ms, 0}
end

local held = redis.call("HMGET", lease, "fence", "run", "token")
local holder = held[1] or held[3]  -- that of a quick load never begins
local is_here = held[2] == string.match(redis.call("INFO", "server"), "run_id:(%x+)")
if holder == fence and not is_here then
  redis.call("DEL", lease)
end
if holder ~= fence or not is_here then
  local there = redis.pcall("GETRANGE", entry, version_at, version_at + 7)
  return {newest, now_ms, there == version and 1 or 0}
end
redis.call("SET", entry, envelope, "PXAT", expires_at_ms)
redis.call("DEL", lease, failures, attempts)
return {newest, now_ms, 1}
