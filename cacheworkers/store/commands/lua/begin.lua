#!lua flags=allow-oom
-- begin.lua: begin the load of a call under its lease, with a fence of this attempt's own.
--
-- KEYS[1]  entry     KEYS[2]  lease     KEYS[3]  attempts
-- ARGV[1]  token     ARGV[2]  fence     ARGV[3]  load_for_ms   ARGV[4]  seen, as in claim.lua
-- ARGV[5]  "1" if the message was delivered before: its first worker is dead
-- ARGV[6]  magic     ARGV[7]  offset of the version   ARGV[8]  "1" if other calls are loaded with it
-- Returns  {"begun", attempts, entry bytes or false} | {"left"} | {"alone"}
-- Atomic because of two workers with the same message only one may begin.
-- The fence is new at each begin: a lease that was broken and claimed again under the same token must
-- not look unbroken to the load that was overtaken.  The run is the server's, for write.lua to compare.
-- Attempts are "how many, until when the last one's lease would have run, 1 if that one was shared with other calls,
-- how many are running": invalidations may have overtaken some, and their leases are gone.
-- What counts is a load that died: its lease ran out, or its message came again.  One whose lease went earlier was
-- overtaken by an invalidation, and is alive.  A shared load that died may have died of any of its calls: it is no
-- attempt of this one, but from then on this call is loaded alone, and nothing has begun until the caller does so.
local entry, lease, attempts = KEYS[1], KEYS[2], KEYS[3]
local token, fence, load_for_ms, seen = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local is_redelivered, magic, version_at, is_shared = ARGV[5] == "1", ARGV[6], tonumber(ARGV[7]), ARGV[8] == "1"

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
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local record = redis.call("GET", attempts) or ""
local so_far, until_ms, was_shared, running = string.match(record, "^(%d+) (%d+) (%d) (%d+)$")
local count = tonumber(so_far or "0")
local has_died = count > 0 and (is_redelivered or now_ms >= tonumber(until_ms))
if has_died and is_shared then
  return {"alone"}
end
local run = string.match(redis.call("INFO", "server"), "run_id:(%x+)")
redis.call("HSET", lease, "token", token, "fence", fence, "run", run)
redis.call("PEXPIRE", lease, load_for_ms)
if count == 0 or (has_died and was_shared == "0") then
  count = count + 1
end
running = has_died and 1 or tonumber(running or "0") + 1
record = string.format("%d %.0f %d %d", count, now_ms + load_for_ms, is_shared and 1 or 0, running)
redis.call("SET", attempts, record, "PX", 10 * load_for_ms)
return {"begun", count, raw}
