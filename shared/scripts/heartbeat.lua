-- A worker says that it is there. It counts as alive until one lease has passed without a word.
local worker, class, info, slots, lease_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
redis.call('ZREM', key('workers:', OTHER[class]), worker)
redis.call('ZADD', key('workers:', class), stamp(now + lease_s), worker)
redis.call('HSET', key('worker:', worker), 'info', info, 'slots', slots)
redis.call('EXPIRE', key('worker:', worker), 3600)
return 1
