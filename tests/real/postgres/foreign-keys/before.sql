BEGIN; INSERT INTO parent SELECT i, i * 10 FROM generate_series(1, 20) i; INSERT INTO child SELECT i * 10 + j, i FROM generate_series(1, 20) i, generate_series(0, 3) j; COMMIT;
INSERT INTO tree SELECT i, NULLIF(i / 2, 0) FROM generate_series(1, 63) i;
