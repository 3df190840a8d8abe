-- A waiting job is cancelled now; a running one when its worker next renews; an ended one stays as it is.
local id = ARGV[2]
local status = field(id, 'status')
if not status then return false end
if status == 'queued' or status == 'in_progress' then
  redis.call('HSETNX', key('job:', id), 'cancel_requested_at', stamp(now))
end
if status == 'queued' then settle(id, 'cancelled') end
return view(id)
