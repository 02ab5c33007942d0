INSERT INTO texts (id, t, c, b) SELECT i, repeat(chr(i + 1000), i), i::text, decode(lpad(to_hex(i), 4, '0'), 'hex')
    FROM generate_series(10, 300) i;
UPDATE texts SET t = NULL WHERE id = 2;
UPDATE texts SET t = E'\\N\\.\n\\.' , v = E'\n\n' WHERE id = 3;
UPDATE texts SET c = c || 'z', vb = vb || B'1' WHERE id BETWEEN 10 AND 20 OR id = 1;
UPDATE texts SET t = t || E'\x01\x7f', b = '\x00' WHERE id > 290;
DELETE FROM texts WHERE id % 7 = 0;
