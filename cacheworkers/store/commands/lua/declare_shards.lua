#!lua flags=allow-oom
-- declare_shards.lua: say in how many shards a process keeps tags, before it registers anything in them.
--
-- KEYS[1]  shards of tags, a hash: tag or prefix -> the most that any process has
-- ARGV     prefix, shards, prefix, shards, ...
-- Returns  1
-- Atomic because two processes with different numbers may start at one time.
-- Never lowered: entries that were registered in more shards may live on.
local key = KEYS[1]

for at = 1, #ARGV, 2 do
  local there = tonumber(redis.call("HGET", key, ARGV[at]) or "0") or 0
  if there < tonumber(ARGV[at + 1]) then
    redis.call("HSET", key, ARGV[at], ARGV[at + 1])
  end
end
return 1
