#!lua flags=allow-oom
-- claim.lua: take the lease of a call, unless another holds it or the entry has moved on.
--
-- KEYS[1]  entry        KEYS[2]  lease         KEYS[3]  failures   KEYS[4]  overtaken value   KEYS[5]  attempts
-- KEYS[6]  seq, where one server has all keys
-- ARGV[1]  token        ARGV[2]  lease_for_ms  ARGV[3]  seen: version the reader saw, "" for none
-- ARGV[4]  expected: token that may be taken over, "" for none
-- ARGV[5]  "1" to heed a running backoff       ARGV[6]  magic   ARGV[7]  offset of the version
-- ARGV[8]  "1" if nobody waits for this load: it is warmed
-- ARGV[9]  least seq of an overtaken value that the reader takes, "" for none
-- ARGV[10] offset of seq in an envelope   ARGV[11]  most loads that may be running, "" for any number
-- ARGV[12] the queue's list, ARGV[13] and [14] a message: pushed if the claim is granted, with the snapshot between its
--          two parts; none of them, if there is nothing to push.
--          Not among the keys: for one that this user may not write, or of another slot, all of the script was refused.
-- Returns  {"claimed", 1 if the message has been pushed, snapshot} | {"moved"} | {"held", holder, is_begun, is_taken_over, pttl_ms}
--          | {"backoff", kind, text, pttl_ms} | {"overtaken", envelope}
-- Atomic because between a look and a SET another reader would take the same lease.
-- Idempotent: whoever already holds the lease under this token claims it again, and has pushed its message.
-- The snapshot is "seq now_ms" where a load may do without begin.lua: of a call of which nothing is known to be there, to
-- have been loaded or to have died.  The lease says on which server it was taken, for write.lua to compare.
-- What is warmed waits behind much else that is.  So who does not warm takes such a lease immediately, as if there were none,
-- until its load has begun; the message of the warm one finds another token, and is left.  Who warms takes nothing.
local entry, lease, failures, overtaken, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token, lease_for_ms, seen, expected = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local heeds_backoff, magic, version_at, warms = ARGV[5] == "1", ARGV[6], tonumber(ARGV[7]), ARGV[8] == "1"
local least_seq, seq_at, most_running = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

local version = ""
local head = redis.pcall("GETRANGE", entry, 0, version_at + 7)  -- pcall: a foreign type there counts as no entry
if type(head) == "string" and string.sub(head, 1, #magic) == magic then
  version = string.sub(head, version_at + 1, version_at + 8)
end

local holder = redis.call("HGET", lease, "token")
if holder and redis.call("PTTL", lease) < 0 then
  -- Without an end, as a copy of the data may leave it: nobody would ever give it back.
  redis.call("DEL", lease)
  holder = false
end
if holder == token then
  return {"claimed", ARGV[12] and 1 or 0, ""}
end
if version ~= seen then
  return {"moved"}
end
if least_seq then
  local value = redis.pcall("GET", overtaken)
  if type(value) == "string" and struct.unpack(">I8", string.sub(value, seq_at + 1, seq_at + 8)) >= least_seq then
    return {"overtaken", value}
  end
end
if heeds_backoff then
  local backoff = redis.call("HMGET", failures, "kind", "text", "until_ms")
  if backoff[3] then
    local time = redis.call("TIME")
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    local rest_ms = (tonumber(backoff[3]) or 0) - now_ms
    if rest_ms > 0 then
      return {"backoff", backoff[1] or "?", backoff[2] or "", rest_ms}
    end
  end
end
if holder then
  local marks = redis.call("HMGET", lease, "fence", "taken_over", "warm")
  local is_begun, is_taken_over = marks[1] and 1 or 0, marks[2] and 1 or 0
  local may_be_taken = marks[3] and not warms or holder == expected
  if not may_be_taken or is_begun == 1 or is_taken_over == 1 then
    return {"held", holder, is_begun, is_taken_over, redis.call("PTTL", lease)}
  end
  redis.call("DEL", lease)
end
if not holder and most_running then
  -- An invalidation breaks the lease, and the load goes on: of a call that is invalidated faster than it loads, each
  -- claim would begin another.
  local until_ms, running = string.match(redis.call("GET", attempts) or "", "^%d+ (%d+) %d (%d+)$")
  if running and tonumber(running) >= most_running then
    local time = redis.call("TIME")
    local rest_ms = tonumber(until_ms) - (time[1] * 1000 + math.floor(time[2] / 1000))
    if rest_ms > 0 then
      return {"held", "", 1, 0, rest_ms}
    end
  end
end
redis.call("HSET", lease, "token", token)
if holder and holder == expected then
  redis.call("HSET", lease, "taken_over", "1")
end
if warms then
  redis.call("HSET", lease, "warm", "1")
end
local snapshot = ""
if KEYS[6] and version == "" and not warms and redis.call("EXISTS", attempts) == 0 then
  local time, seq = redis.call("TIME"), tonumber(redis.pcall("GET", KEYS[6]) or "0")
  if seq and seq >= 0 and seq <= 2 ^ 53 then
    snapshot = string.format("%.0f %.0f", seq, time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call("HSET", lease, "run", string.match(redis.call("INFO", "server"), "run_id:(%x+)"))
  end
end
redis.call("PEXPIRE", lease, lease_for_ms)
local is_pushed = ARGV[12] and type(redis.pcall("LPUSH", ARGV[12], ARGV[13] .. snapshot .. ARGV[14])) == "number"  -- pcall: it may be forbidden
return {"claimed", is_pushed and 1 or 0, snapshot}
