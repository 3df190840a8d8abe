-- How many jobs wait behind each doorbell: auto, cuda, cpu.
local waiting = {auto = 0, cuda = 0, cpu = 0}
for _, wants in ipairs({'auto', 'cuda', 'cpu'}) do
  local jobs = redis.call('ZCARD', key('queued:', wants)) + redis.call('ZCARD', key('quarantine:', wants))
  waiting[bell(wants)] = waiting[bell(wants)] + jobs
end
return {waiting.auto, waiting.cuda, waiting.cpu}
