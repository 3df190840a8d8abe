-- Keeps the leases of a whole batch and tells of cancellations: 0 lost, 1 held, 2 cancel.
local lease_s = tonumber(ARGV[2])
local states = {}
for i = 3, #ARGV, 3 do
  local id, token, progress = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if field(id, 'token') == token then
    redis.call('ZADD', key('running'), stamp(now + lease_s), id)
    write(id, 'progress', progress)
    states[#states + 1] = field(id, 'cancel_requested_at') and 2 or 1
  else
    states[#states + 1] = 0
  end
end
return states
