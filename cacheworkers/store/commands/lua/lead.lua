#!lua flags=allow-oom
-- lead.lua: take, keep or give back the lease of the beat that sends.
--
-- KEYS[1]  leader
-- ARGV[1]  token     ARGV[2]  lease_for_ms; 0 gives it back
-- Returns  1 ours, 0 another's, or given back
-- Atomic because the lease may run out, and be another's, between the check and the SET.
local leader, token, lease_for_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])

local holder = redis.call("GET", leader)
if holder and holder ~= token then
  return 0
end
if lease_for_ms == 0 then
  redis.call("DEL", leader)
  return 0
end
redis.call("SET", leader, token, "PX", lease_for_ms)
return 1
