-- A worker gives a job back to its old place. Going away counts nothing; a transient error is counted.
local id, token, transient = ARGV[2], ARGV[3], ARGV[4] == '1'
local max_errors, failure = tonumber(ARGV[5]), ARGV[6]

if field(id, 'token') ~= token then return 0 end
if field(id, 'cancel_requested_at') then
  settle(id, 'cancelled')
elseif not transient then
  redis.call('HINCRBY', key('job:', id), 'attempts', -1)
  give_back(id)
elseif redis.call('HINCRBY', key('job:', id), 'errors', 1) < max_errors then
  give_back(id)
else
  write(id, 'error', failure)
  settle(id, 'failed')
end
return 1
