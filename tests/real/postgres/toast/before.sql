INSERT INTO toasted SELECT i, i, repeat(md5(i::text), 200), decode(repeat(md5(i::text), 300), 'hex'), jsonb_build_object('k', repeat(i::text, 5000)) FROM generate_series(1, 30) i;
INSERT INTO toasted_whole SELECT i / 2, repeat(md5((i / 2)::text), 200) FROM generate_series(1, 12) i;
INSERT INTO toasted_key SELECT repeat(md5(i::text), 30), i, repeat(md5(i::text), 300) FROM generate_series(1, 10) i;
