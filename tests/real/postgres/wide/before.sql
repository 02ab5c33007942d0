INSERT INTO wide (id, c1, c1500) SELECT i, i, -i FROM generate_series(1, 20) i;
INSERT INTO long_rows SELECT i, repeat(md5(i::text), 30000), repeat('z', 3000000) FROM generate_series(1, 3) i;
