-- Removes every trace of a job. A worker that still speaks it loses its lease, and its finish is refused.
local id = ARGV[2]
if not field(id, 'status') then return false end
local audio = field(id, 'audio') or ''
erase(id)
return audio
