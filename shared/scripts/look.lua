-- The records of the named jobs, without those that are gone.
local views = {}
for i = 2, #ARGV do
  if field(ARGV[i], 'status') then views[#views + 1] = view(ARGV[i]) end
end
return views
