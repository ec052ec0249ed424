#!lua flags=allow-oom
-- wait_marker.lua: write something, so that WAIT on this connection waits for all that was written here before.
--
-- KEYS[1]  a key of this master
-- ARGV[1]  kept_for_ms
-- Returns  1
-- WAIT counts up to the last write of its own connection; what other connections wrote earlier comes before it.
local key, kept_for_ms = KEYS[1], ARGV[1]

redis.call("SET", key, "1", "PX", kept_for_ms)
return 1
