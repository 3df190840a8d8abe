-- The file is deleted: the record says so for one more day, then goes too.
local id = ARGV[2]
redis.call('ZREM', key('audio'), id)
if not field(id, 'audio') then return 0 end
clear(id, 'audio')
write(id, 'audio_expired', 1)
redis.call('ZADD', key('terminal'), stamp(now + RECORD_KEPT_S), id)
return 1
