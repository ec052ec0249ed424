#!lua
-- offer.lua: leave a value that an invalidation has overtaken to the readers who had begun before its load.
--
-- KEYS[1]  overtaken value
-- ARGV[1]  envelope          ARGV[2]  kept_for_ms   ARGV[3]  offset of seq in an envelope
-- Returns  1 left, 0 a newer one is there
-- Atomic because of two loads the one with the newer snapshot serves more readers.
-- It is no entry: a claim hands it out, and only for a sequence number that its reader has seen after it began.
local overtaken = KEYS[1]
local envelope, kept_for_ms, seq_at = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function seq_of(value)
  return struct.unpack(">I8", string.sub(value, seq_at + 1, seq_at + 8))
end

local there = redis.pcall("GET", overtaken)
if type(there) == "string" and seq_of(there) > seq_of(envelope) then
  return 0
end
redis.call("SET", overtaken, envelope, "PX", kept_for_ms)
return 1
