#!lua flags=allow-oom
-- add_accesses.lua: add reads to the access scores of one loader, which halve with every half-life; keep the highest.
--
-- KEYS[1]  access scores, a sorted set: call -> the instant, in seconds, at which a single read would be worth as much
-- ARGV[1]  half_life, seconds      ARGV[2]  most members   ARGV[3]  kept_for, seconds
-- ARGV[4...]  call, reads, call, reads, ...
-- Returns  members kept
-- Atomic because of two processes that read one score and write another, one would be lost.
-- n reads are worth one read that is log2(n) half-lives younger.  So scores need no halving as time passes: their
-- order stays, and what has cooled down is what lies far enough in the past.
local scores = KEYS[1]
local half_life, most, kept_for = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local MAX_FORGOTTEN = 500

local time = redis.call("TIME")
local now = time[1] + time[2] / 1e6
local function half_lives(reads)
  return half_life * math.log(reads) / math.log(2)
end
for at = 4, #ARGV, 2 do
  local read_at = now + half_lives(tonumber(ARGV[at + 1]))
  local before = tonumber(redis.call("ZSCORE", scores, ARGV[at]) or "")
  if before then
    local younger, older = math.max(read_at, before), math.min(read_at, before)
    read_at = younger + half_lives(1 + 2 ^ ((older - younger) / half_life))
  end
  redis.call("ZADD", scores, string.format("%.6f", read_at), ARGV[at])
end
local cold = redis.call(
  "ZRANGEBYSCORE", scores, "-inf", string.format("(%.6f", now - kept_for), "LIMIT", 0, MAX_FORGOTTEN
)
if #cold > 0 then
  redis.call("ZREM", scores, unpack(cold))
end
redis.call("ZREMRANGEBYRANK", scores, 0, -(most + 1))
redis.call("PEXPIRE", scores, math.ceil(kept_for * 1000))
return redis.call("ZCARD", scores)
