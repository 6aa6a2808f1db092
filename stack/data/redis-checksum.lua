-- Adds keys of one database to a checksum, some thousands or some megabytes: a server in use is not held up for long.
--
-- ARGV: cursor; keys seen so far; five partial sums; keys counted; of those, with a time to live; `1` to leave those out;
-- then prefixes of keys to leave out. Returns the first nine for the next call; the cursor `0` means that it is complete.
--
-- Each key gives a SHA-1 over its name, type, content and time of expiry (in seconds); their sum does not depend on the
-- order in which a server keeps them, nor on its encodings. So do the sums over members of sets and hashes.
local call, pcall_, sha1 = redis.call, redis.pcall, redis.sha1hex
local work = 0

local function add(sums, hex)
    for j = 1, 5 do
        sums[j] = (sums[j] + tonumber(hex:sub(j * 8 - 7, j * 8), 16)) % 4294967296
    end
end

local function joined(items)
    for i, item in ipairs(items) do
        if type(item) == 'table' then
            item = joined(item)
        end
        items[i] = #tostring(item) .. ':' .. tostring(item)
    end
    return table.concat(items)
end

local function unordered(items, step)
    local sums = {0, 0, 0, 0, 0}
    for i = 1, #items, step do
        add(sums, sha1(#items[i] .. ':' .. items[i] .. (items[i + step - 1] or '')))
    end
    return table.concat(sums, ' ')
end

local content = {
    string = function(key) return call('GET', key) end,
    list = function(key) return joined(call('LRANGE', key, 0, -1)) end,
    set = function(key) return unordered(call('SMEMBERS', key), 1) end,
    hash = function(key) return unordered(call('HGETALL', key), 2) end,
    zset = function(key)
        local items = call('ZRANGE', key, 0, -1, 'WITHSCORES')
        for i = 2, #items, 2 do
            -- Versions write the same number in different ways.
            items[i] = string.format('%.17g', tonumber(items[i]))
        end
        return joined(items)
    end,
    stream = function(key)
        local parts = {joined(call('XRANGE', key, '-', '+'))}
        for _, group in ipairs(call('XINFO', 'GROUPS', key)) do
            local fields = {}
            for i = 1, #group, 2 do
                fields[group[i]] = group[i + 1]
            end
            parts[#parts + 1] = joined({fields['name'], fields['last-delivered-id']})
            -- Identifier, consumer and number of deliveries; the idle time goes on.
            for _, pending in ipairs(call('XPENDING', key, fields['name'], '-', '+', 1000000)) do
                parts[#parts + 1] = joined({pending[1], pending[2], pending[4]})
            end
        end
        return table.concat(parts, '\n')
    end,
}

local function expiry(key)
    local left = call('PTTL', key)
    if left < 0 then
        return -1
    end
    local exact = pcall_('PEXPIRETIME', key)
    if type(exact) ~= 'number' then
        local now = call('TIME')
        exact = now[1] * 1000 + math.floor(now[2] / 1000) + left
    end
    return math.floor(exact / 1000 + 0.5)
end

local function left_out(key)
    for i = 11, #ARGV do
        if key:sub(1, #ARGV[i]) == ARGV[i] then
            return true
        end
    end
    return false
end

local cursor = ARGV[1]
local sums = {}
for j = 1, 5 do
    sums[j] = tonumber(ARGV[j + 2])
end
local seen, keys, expiring = tonumber(ARGV[2]), tonumber(ARGV[8]), tonumber(ARGV[9])
repeat
    local page = call('SCAN', cursor, 'COUNT', 100)
    cursor = page[1]
    seen = seen + #page[2]
    for _, key in ipairs(page[2]) do
        local kind = call('TYPE', key)['ok']
        if kind ~= 'none' and not left_out(key) then
            local at = expiry(key)
            if at < 0 or ARGV[10] ~= '1' then
                assert(content[kind], 'keys of type ' .. kind .. ' are not known here')
                local held = content[kind](key)
                add(sums, sha1(joined({key, kind, at, sha1(held)})))
                work = work + 1000 + #held
                keys = keys + 1
                if at >= 0 then
                    expiring = expiring + 1
                end
            end
        end
    end
until cursor == '0' or work > 10000000
return table.concat({cursor, seen, sums[1], sums[2], sums[3], sums[4], sums[5], keys, expiring}, ' ')
