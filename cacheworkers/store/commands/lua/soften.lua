#!lua flags=allow-oom
-- soften.lua: make one entry stale, break its lease, and end its failure.
--
-- KEYS[1]  entry     KEYS[2]  lease     KEYS[3]  failures
-- ARGV[1]  magic     ARGV[2]  offset of fresh_until (stale_until follows it, stale_for is 16 bytes before it)
-- ARGV[3]  margin_ms: how far a reader's idea of this clock may be behind; it must not find the entry fresh
-- Returns  1 made stale, 0 nothing there, or stale already
-- Atomic because SETRANGE on an entry that has just gone would create an immortal one.
local entry, lease, failures = KEYS[1], KEYS[2], KEYS[3]
local magic, at, margin_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

redis.call("DEL", lease, failures)
local head = redis.pcall("GETRANGE", entry, 0, at + 15)
if type(head) ~= "string" or #head < at + 16 or string.sub(head, 1, #magic) ~= magic then
  return 0
end
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local stale_for_ms = struct.unpack(">I8", string.sub(head, at - 15, at - 8))
local fresh_until_ms = struct.unpack(">I8", string.sub(head, at + 1, at + 8))
local stale_until_ms = struct.unpack(">I8", string.sub(head, at + 9, at + 16))
local fresh_ms, stale_ms = math.min(fresh_until_ms, now_ms - margin_ms), math.min(stale_until_ms, now_ms + stale_for_ms)
redis.call("SETRANGE", entry, at, struct.pack(">I8I8", fresh_ms, stale_ms))
return fresh_until_ms > now_ms and 1 or 0
