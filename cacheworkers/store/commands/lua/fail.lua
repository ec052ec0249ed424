#!lua flags=allow-oom
-- fail.lua: record that a load failed, unless its lease has been broken since it began.
--
-- KEYS[1]  lease     KEYS[2]  failures  KEYS[3]  attempts
-- ARGV[1]  fence or token, as in write.lua   ARGV[2]  kind      ARGV[3]  text
-- ARGV[4]  backoff_ms of a first failure, ARGV[5]  longest backoff_ms
-- Returns  backoff_ms, or -1 refused
-- Atomic like write.lua.  The failures key is tracked: its push wakes the waiters, and leaves L1 alone.
-- Idempotent: the fence in the record identifies a failure that was already counted.
local lease, failures, attempts = KEYS[1], KEYS[2], KEYS[3]
local fence, kind, text, first_ms, most_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local held = redis.call("HMGET", lease, "fence", "token")
if (held[1] or held[2]) ~= fence then
  local record = redis.call("HMGET", failures, "fence", "backoff_ms")
  return record[1] == fence and tonumber(record[2]) or -1
end
local count = (tonumber(redis.call("HGET", failures, "count") or "0") or 0) + 1
redis.call("HSET", failures, "count", string.format("%.0f", count))
local backoff_ms = math.floor(math.min(first_ms * 2 ^ math.min(count - 1, 30), most_ms))
local time = redis.call("TIME")
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + backoff_ms
redis.call("HSET", failures, "fence", fence, "kind", kind, "text", text,
  "until_ms", string.format("%.0f", until_ms), "backoff_ms", string.format("%.0f", backoff_ms))
-- Kept longer than the backoff, so that the next failure doubles it.
redis.call("PEXPIRE", failures, backoff_ms + 2 * most_ms)
redis.call("DEL", lease, attempts)
return backoff_ms
