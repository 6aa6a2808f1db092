-- Writes one block of about 1 MB of data of realistic shape, the same on every server. ARGV[1]: the number of the block.
--
-- Everything follows from SHA-1 over counters: no clock, no random numbers. What expires does so in the year 2100.
local block = tonumber(ARGV[1])
local call, sha1 = redis.call, redis.sha1hex
local year_2100 = 4102444800

local function text(name, length)
    local parts = {}
    for i = 1, math.ceil(length / 40) do
        parts[i] = sha1(name .. ':' .. i)
    end
    return table.concat(parts):sub(1, length)
end

local function bytes(name, length)
    return (text(name, length * 2):gsub('..', function(hex)
        return string.char(tonumber(hex, 16))
    end))
end

for i = 1, 160 do
    local id = block * 160 + i
    call('SET', 'cache:page:' .. id, '<article id="' .. id .. '">' .. text('page' .. id, 4000) .. '</article>')
    if i % 4 == 0 then
        call('EXPIREAT', 'cache:page:' .. id, year_2100 + id)
    end
end
for i = 1, 400 do
    local id = block * 400 + i
    local value = string.format('{"user":%d,"token":"%s","csrf":"%s","name":"Zoë Müller %d","cart":[%d,%d]}',
        id, text('token' .. id, 120), sha1('csrf' .. id), id, id % 97, id % 89)
    call('SET', 'session:' .. sha1('session' .. id), value)
    call('EXPIREAT', 'session:' .. sha1('session' .. id), year_2100 + id)
end
for i = 1, 300 do
    local id = block * 300 + i
    call('HSET', 'user:' .. id, 'name', 'User ' .. id, 'email', sha1('mail' .. id) .. '@example.com',
        'logins', id % 1000, 'balance', string.format('%.2f', id / 7), 'about', text('about' .. id, 120))
    call('SADD', 'team:' .. id % 50, 'user:' .. id)
    call('SADD', 'numbers:' .. block % 8, id)
    call('ZADD', 'score:' .. block % 16, string.format('%.17g', id / 3), 'user:' .. id)
    call('PFADD', 'visitors:' .. block % 4, id)
    call('SETBIT', 'active:' .. block % 4, (id * 7919) % 1000003, 1)
end
for i = 1, 200 do
    local id = block * 200 + i
    call('RPUSH', 'queue:' .. block % 16, '{"job":' .. id .. ',"args":"' .. text('job' .. id, 80) .. '"}')
    call('XADD', 'events:' .. block % 8, (1700000000000 + id) .. '-' .. i % 3, 'kind', 'view', 'user', id, 'page', sha1('p' .. id))
end
call('SET', 'blob:' .. block, bytes('blob' .. block, 16384))
return block
