-- What time does to jobs: leases run out, waiting ends, records grow old. May run anywhere, any number of times.
local reap_leases, limit = ARGV[2] == '1', tonumber(ARGV[3])
local crashed, too_late = ARGV[4], ARGV[5]
local MAX_CRASHES_ALONE = 3  -- fewer would condemn a job for its worker's bad luck

local counts = {requeued = 0, quarantined = 0, failed = 0, cancelled = 0, expired = 0, removed = 0}
local function count(what) counts[what] = counts[what] + 1 end

local function up_to_now(index)
  return redis.call('ZRANGEBYSCORE', key(index), '-inf', stamp(now), 'LIMIT', 0, limit)
end

local function count_crash(id)
  redis.call('HINCRBY', key('job:', id), 'crashes', 1)
  if field(id, 'alone') == '1' then redis.call('HINCRBY', key('job:', id), 'alone_crashes', 1) end
end

local function reap_lease(id)
  count_crash(id)
  if field(id, 'cancel_requested_at') then
    settle(id, 'cancelled')
    return 'cancelled'
  elseif number(id, 'alone_crashes') >= MAX_CRASHES_ALONE then
    write(id, 'error', crashed)
    settle(id, 'failed')
    return 'failed'
  end
  give_back(id)
  return number(id, 'crashes') >= 2 and 'quarantined' or 'requeued'
end

if reap_leases then
  for _, id in ipairs(up_to_now('running')) do count(reap_lease(id)) end
end
for _, id in ipairs(up_to_now('due')) do
  settle_overdue(id, too_late)
  count(field(id, 'status'))
end
for _, id in ipairs(up_to_now('terminal')) do
  erase(id)
  count('removed')
end
for class in pairs(OTHER) do
  redis.call('ZREMRANGEBYSCORE', key('workers:', class), '-inf', stamp(now - 3600))
end
return {counts.requeued, counts.quarantined, counts.failed, counts.cancelled, counts.expired, counts.removed}
