-- Writes what is rare and goes wrong: odd names, every type in its small and large encoding, extremes.
local call, sha1 = redis.call, redis.sha1hex
local year_2100 = 4102444800

call('SET', '', 'the empty name')
call('SET', 'empty value', '')
call('SET', 'name with "quotes", \'these\', $(and) `more`', 'x')
call('SET', 'line\r\nbreak\ttab', 'a\r\nb')
call('SET', 'ключ 🔑 clé', 'значение')
local every_byte = {}
for byte = 0, 255 do
    every_byte[byte + 1] = string.char(byte)
end
every_byte = table.concat(every_byte)
call('SET', every_byte, every_byte)
call('SET', 'int', '9223372036854775807')
call('SET', 'int:negative', '-9223372036854775808')
call('SET', 'not an int', '007')
call('SET', 'float', '3.0e+10')
call('SET', 'large', string.rep(sha1('large'), 75000))
call('SET', 'repetitive', string.rep('a', 1000000))
call('SET', 'expires:2100', 'x')
call('EXPIREAT', 'expires:2100', year_2100)

call('RPUSH', 'list:small', '1', '', every_byte, '-5')
call('SADD', 'set:ints', 1, -1, 32767, 2147483648, '9223372036854775807')
call('SADD', 'set:small', 'a', '', every_byte)
call('HSET', 'hash:small', '', 'empty field', every_byte, every_byte, 'n', 12)
call('EXPIREAT', 'hash:small', year_2100)
call('ZADD', 'zset:small', '-inf', 'low', '+inf', 'high', '0', '', '0.1', every_byte, '1e300', 'big', '-0.0000001', 'tiny')
for i = 1, 5000 do
    call('RPUSH', 'list:large', sha1('l' .. i))
    call('SADD', 'set:large', sha1('s' .. i))
    call('HSET', 'hash:large', sha1('h' .. i), i)
    call('ZADD', 'zset:large', i % 100, sha1('z' .. i))
end
call('GEOADD', 'geo', '13.361389', '38.115556', 'Palermo', '15.087269', '37.502669', 'Catania')
for i = 1, 300 do
    call('XADD', 'stream', i .. '-1', 'n', i, 'bytes', every_byte)
end
call('XDEL', 'stream', '7-1', '8-1')
call('XGROUP', 'CREATE', 'stream', 'readers', '0')
call('XGROUP', 'CREATE', 'stream', 'idle group', '$')
call('XREADGROUP', 'GROUP', 'readers', 'anna', 'COUNT', 20, 'STREAMS', 'stream', '>')
call('XREADGROUP', 'GROUP', 'readers', 'bert', 'COUNT', 10, 'STREAMS', 'stream', '>')
call('XACK', 'stream', 'readers', '3-1', '4-1')
call('XADD', 'stream:empty', '1-1', 'a', 'b')
call('XDEL', 'stream:empty', '1-1')
return 'ok'
