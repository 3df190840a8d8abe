-- What the living workers last said of themselves.
local infos = {}
for _, class in ipairs({'cuda', 'cpu'}) do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('workers:', class), '(' .. stamp(now), '+inf')) do
    infos[#infos + 1] = redis.call('HGET', key('worker:', id), 'info') or nil
  end
end
return infos
