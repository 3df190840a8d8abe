-- The best waiting job goes to this worker, under a fresh token and a lease.
-- A job that crashed twice waits in quarantine and is spoken alone, so that it takes no neighbours with it.
local worker, device, class, model, token = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local lease_s, too_late, excuse, notice = tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]
local DRAIN_LOCK_S = 10

local mine = redis.call('SMEMBERS', key('worker:', worker, ':jobs'))
local devices = {'auto', class}
if not alive(OTHER[class]) then devices[3] = OTHER[class] end

local function best(place)
  local id, lowest
  for _, wants in ipairs(devices) do
    local head = redis.call('ZRANGE', key(place, wants), 0, 0, 'WITHSCORES')
    if head[1] and (not lowest or tonumber(head[2]) < lowest) then
      id, lowest = head[1], tonumber(head[2])
    end
  end
  return id
end

local function best_in_time(place)
  local id = best(place)
  while id and due_at(id) <= now do
    settle_overdue(id, too_late)
    id = best(place)
  end
  return id
end

-- One busy worker at a time takes nothing new, until it is idle enough for the quarantine.
local function drains()
  local lock = redis.call('HMGET', key('drainer'), 'worker', 'until')
  if lock[1] and lock[1] ~= worker and tonumber(lock[2]) > now then return false end
  redis.call('HSET', key('drainer'), 'worker', worker, 'until', stamp(now + DRAIN_LOCK_S))
  return true
end

local function next_job()
  local suspect = best_in_time('quarantine:')
  if suspect and #mine == 0 then
    redis.call('DEL', key('drainer'))
    return suspect, true
  end
  if suspect and drains() then return nil end
  return best_in_time('queued:'), false
end

local function fallback(wants)
  if wants == class then return '' end
  if wants == 'auto' then return excuse end
  return 'no ' .. wants .. ' worker was alive; spoken on ' .. class
end

local function start(id, alone)
  dequeue(id)
  local instead = fallback(field(id, 'wants'))
  write(id, 'token', token, 'worker', worker, 'model', model, 'device', device, 'begun', 1,
    'started_at', stamp(now), 'device_fallback', instead, 'model_notice', notice, 'alone', alone and 1 or 0)
  redis.call('HINCRBY', key('job:', id), 'attempts', 1)
  redis.call('SADD', key('worker:', worker, ':jobs'), id)
  redis.call('ZADD', key('running'), stamp(now + lease_s), id)
  set_status(id, 'in_progress')
end

local function told(id)
  return {id, field(id, 'request'), field(id, 'attempts'), field(id, 'alone'),
    field(id, 'device_fallback'), field(id, 'created_at'), stamp(number(id, 'deadline') - now)}
end

for _, id in ipairs(mine) do
  if field(id, 'token') == token then return told(id) end  -- the first reply was lost
  if field(id, 'alone') == '1' then return false end
end
local id, alone = next_job()
if not id then return false end
start(id, alone)
return told(id)
