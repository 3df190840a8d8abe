-- Files past their time, as id, name, id, name ...
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('audio'), '-inf', stamp(now), 'LIMIT', 0, ARGV[2])) do
  found[#found + 1] = id
  found[#found + 1] = field(id, 'audio')
end
return found
