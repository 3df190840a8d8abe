-- Ends a job for the holder of its token, once. A zombie, whose token is no longer the job's, is refused.
local id, token, status = ARGV[2], ARGV[3], ARGV[4]
local output, audio, failure, generate_s, ttfa_s = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local WEIGHT = 0.2  -- of the newest job in the moving average

local function learn(seconds)
  local average = tonumber(redis.call('GET', key('job_seconds')) or seconds)
  redis.call('SET', key('job_seconds'), stamp(average + WEIGHT * (seconds - average)))
end

local function keep(name, value)
  if value ~= '' then write(id, name, value) end
end

if field(id, 'ended_by') == token then  -- the first reply was lost
  return field(id, 'status') == status and 1 or 0
end
if field(id, 'token') ~= token then return 0 end
write(id, 'ended_by', token)
keep('output', output)
keep('audio', audio)
keep('error', failure)
keep('generate_s', generate_s)
keep('ttfa_s', ttfa_s)
if status == 'completed' then learn(now - number(id, 'started_at')) end
settle(id, status)
return 1
