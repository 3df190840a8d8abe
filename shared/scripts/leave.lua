-- A worker goes in order. What it still ran keeps its lease; it should have been released before.
for class in pairs(OTHER) do redis.call('ZREM', key('workers:', class), ARGV[2]) end
redis.call('DEL', key('worker:', ARGV[2]))
if redis.call('HGET', key('drainer'), 'worker') == ARGV[2] then redis.call('DEL', key('drainer')) end
return 1
