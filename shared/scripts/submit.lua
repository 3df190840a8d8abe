-- The commit point: when this script has answered, the job is accepted.
local id, request, wants, rank = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local start_timeout_s, timeout_s, keep_s = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local max_queued, idempotency, body = tonumber(ARGV[9]), ARGV[10], ARGV[11]
local IDEMPOTENCY_S = 86400

local function num_waiting()
  local waiting = 0
  for _, device in ipairs({'auto', 'cuda', 'cpu'}) do
    waiting = waiting + redis.call('ZCARD', key('queued:', device))
    waiting = waiting + redis.call('ZCARD', key('quarantine:', device))
  end
  return waiting
end

-- The job of an earlier request with the same key, while that is remembered and not erased.
local function first_job()
  if idempotency == '' then return nil end
  local first = redis.call('HMGET', key('first:', idempotency), 'job', 'until')
  if not first[1] or tonumber(first[2]) <= now then return nil end
  return redis.call('EXISTS', key('job:', first[1])) == 1 and first[1] or nil
end

local function remember()
  local first = key('first:', idempotency)
  redis.call('HSET', first, 'job', id, 'body', body, 'until', stamp(now + IDEMPOTENCY_S))
  redis.call('EXPIRE', first, IDEMPOTENCY_S)
  write(id, 'first_key', first)
end

-- First of all: the reply to this very submission was lost, and it is sent again.
if redis.call('EXISTS', key('job:', id)) == 1 then
  return {'accepted', bell(wants), view(id)}
end

local first = first_job()
if first then
  local same = redis.call('HGET', key('first:', idempotency), 'body') == body
  return {same and 'replayed' or 'conflict', bell(wants), view(first)}
end

if num_waiting() >= max_queued then
  return {'full', stamp(tonumber(redis.call('GET', key('job_seconds')) or '0') / math.max(1, num_slots()))}
end

local seq = redis.call('INCR', key('seq'))
write(id, 'request', request, 'wants', wants, 'keep_s', keep_s, 'seq', seq,
  'score', string.format('%.0f', rank * 2 ^ 40 + seq), 'created_at', stamp(now),
  'start_by', stamp(now + math.min(start_timeout_s, timeout_s)), 'deadline', stamp(now + timeout_s))
redis.call('ZADD', key('jobs'), seq, id)
enqueue(id)
if idempotency ~= '' then remember() end
return {'accepted', bell(wants), view(id)}
