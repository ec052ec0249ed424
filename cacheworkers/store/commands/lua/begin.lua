#!lua flags=allow-oom
-- begin.lua: begin the load of a call under its lease, with a fence of this attempt's own.
--
-- KEYS[1]  entry     KEYS[2]  lease     KEYS[3]  attempts
-- ARGV[1]  token     ARGV[2]  fence     ARGV[3]  load_for_ms   ARGV[4]  seen, as in claim.lua
-- ARGV[5]  "1" if the message was delivered before: its first worker is dead
-- ARGV[6]  magic     ARGV[7]  offset of the version
-- Returns  {"begun", attempts, entry bytes or false} | {"left"}
-- Atomic because of two workers with the same message only one may begin.
-- The fence is new at each begin: a lease that was broken and claimed again under the same token must
-- not look unbroken to the load that was overtaken.  The run is the server's, for write.lua to compare.
-- Attempts are "how many, until when the last one's lease would have run".  What counts is a load that died: its lease
-- ran out, or its message came again.  One whose lease went earlier was overtaken by an invalidation, and is alive.
local entry, lease, attempts = KEYS[1], KEYS[2], KEYS[3]
local token, fence, load_for_ms, seen = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local is_redelivered, magic, version_at = ARGV[5] == "1", ARGV[6], tonumber(ARGV[7])

local raw = redis.pcall("GET", entry)
if type(raw) ~= "string" then
  raw = false
end
local held = redis.call("HMGET", lease, "token", "fence")
if held[1] and redis.call("PTTL", lease) < 0 then  -- without an end: see claim.lua
  redis.call("DEL", lease)
  held = {false, false}
end
if held[1] then
  if held[1] ~= token then
    return {"left"}
  end
  if held[2] == fence then  -- sent twice
    return {"begun", tonumber(string.match(redis.call("GET", attempts) or "1", "^%d+") or "1"), raw}
  end
  if held[2] and not is_redelivered then
    return {"left"}
  end
else
  -- The lease ran out, or an invalidation broke it before the work began: readers may still wait for this load.
  local version = ""
  if raw and string.sub(raw, 1, #magic) == magic then
    version = string.sub(raw, version_at + 1, version_at + 8)
  end
  if version ~= seen then
    return {"left"}
  end
end
local run = string.match(redis.call("INFO", "server"), "run_id:(%x+)")
redis.call("HSET", lease, "token", token, "fence", fence, "run", run)
redis.call("PEXPIRE", lease, load_for_ms)
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local so_far, until_ms = string.match(redis.call("GET", attempts) or "0 0", "^(%d+) (%d+)$")
local count = tonumber(so_far or "0")
if count == 0 or is_redelivered or now_ms >= tonumber(until_ms) then
  count = count + 1
end
redis.call("SET", attempts, string.format("%d %.0f", count, now_ms + load_for_ms), "PX", 10 * load_for_ms)
return {"begun", count, raw}
