-- The words every transition is written in; put before each script when it is loaded.
-- KEYS[1] is the key prefix (one hash tag, so that all keys share a slot), ARGV[1] a test's clock or ''.

local RECORD_KEPT_S = 86400  -- a record outlives its audio by a day, so that a late client gets 410, not 404

local function key(...) return KEYS[1] .. table.concat({...}) end

local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local now = clock()

local function stamp(seconds) return string.format('%.6f', seconds) end

-- HGET answers false for a missing field
local function field(id, name) return redis.call('HGET', key('job:', id), name) end
local function number(id, name) return tonumber(field(id, name) or '0') end
local function write(id, ...) redis.call('HSET', key('job:', id), ...) end
local function clear(id, ...) redis.call('HDEL', key('job:', id), ...) end

local function set_status(id, status)
  local before = field(id, 'status')
  if before then redis.call('ZREM', key('status:', before), id) end
  redis.call('ZADD', key('status:', status), field(id, 'seq'), id)
  write(id, 'status', status)
end

-- Workers ---------------------------------------------------------------------------------------

local OTHER = {cpu = 'cuda', cuda = 'cpu'}

local function alive(class)
  return redis.call('ZCOUNT', key('workers:', class), '(' .. stamp(now), '+inf') > 0
end

-- Which workers are rung for a job: those it asked for, or the others while it has none.
local function bell(wants)
  if wants == 'auto' or alive(wants) or not alive(OTHER[wants]) then return wants end
  return OTHER[wants]
end

-- Places: a job is in `queued` or `quarantine` (waiting), in `running`, or it has ended ----------

local function due_at(id)
  return number(id, field(id, 'begun') and 'deadline' or 'start_by')
end

local function enqueue(id)
  local place = number(id, 'crashes') >= 2 and 'quarantine:' or 'queued:'
  redis.call('ZADD', key(place, field(id, 'wants')), field(id, 'score'), id)
  redis.call('ZADD', key('due'), stamp(due_at(id)), id)
  set_status(id, 'queued')
end

local function dequeue(id)
  local wants = field(id, 'wants')
  redis.call('ZREM', key('queued:', wants), id)
  redis.call('ZREM', key('quarantine:', wants), id)
  redis.call('ZREM', key('due'), id)
end

local function drop_claim(id)
  redis.call('ZREM', key('running'), id)
  redis.call('SREM', key('worker:', field(id, 'worker') or '', ':jobs'), id)
  clear(id, 'token', 'worker', 'alone')
end

local function give_back(id)
  drop_claim(id)
  clear(id, 'started_at', 'progress', 'model', 'model_notice', 'device', 'device_fallback')
  enqueue(id)
end

-- The only road to a final status.
local function settle(id, status)
  dequeue(id)
  drop_claim(id)
  local expires_at = now + number(id, 'keep_s')
  write(id, 'completed_at', stamp(now), 'expires_at', stamp(expires_at))
  redis.call('HINCRBY', key('job:', id), 'ends', 1)
  local removal = stamp(expires_at + RECORD_KEPT_S)
  if field(id, 'audio') then
    redis.call('ZADD', key('audio'), stamp(expires_at), id)
    removal = '+inf'  -- until the file is gone
  end
  redis.call('ZADD', key('terminal'), removal, id)
  set_status(id, status)
end

local function settle_overdue(id, failure)
  if not field(id, 'begun') then return settle(id, 'expired') end
  write(id, 'error', failure)
  settle(id, 'failed')
end

local function erase(id)
  dequeue(id)
  drop_claim(id)
  local first = field(id, 'first_key')
  if first and redis.call('HGET', first, 'job') == id then redis.call('DEL', first) end
  for _, index in ipairs({'jobs', 'audio', 'terminal', 'status:' .. field(id, 'status')}) do
    redis.call('ZREM', key(index), id)
  end
  redis.call('DEL', key('job:', id))
end

-- What is told about a job ----------------------------------------------------------------------

local function num_slots()
  local slots = 0
  for class in pairs(OTHER) do
    local ids = redis.call('ZRANGEBYSCORE', key('workers:', class), '(' .. stamp(now), '+inf')
    for _, id in ipairs(ids) do
      slots = slots + tonumber(redis.call('HGET', key('worker:', id), 'slots') or '0')
    end
  end
  return slots
end

-- Approximate: one line for all devices, every job as long as the recent ones.
local function outlook(id)
  local ahead = 0
  for _, wants in ipairs({'auto', 'cuda', 'cpu'}) do
    ahead = ahead + redis.call('ZCOUNT', key('queued:', wants), '-inf', '(' .. field(id, 'score'))
  end
  local slots, seconds = num_slots(), redis.call('GET', key('job_seconds'))
  local turns = math.max(0, ahead + 1 + redis.call('ZCARD', key('running')) - slots)
  if slots == 0 or (turns > 0 and not seconds) then return ahead + 1, '' end
  return ahead + 1, stamp(turns * tonumber(seconds or '0') / slots)
end

-- The whole record, flat, then position and seconds to wait when it is queued.
local function view(id)
  local record = redis.call('HGETALL', key('job:', id))
  if field(id, 'status') ~= 'queued' then return {id, record} end
  local position, wait_s = outlook(id)
  return {id, record, tostring(position), wait_s}
end
