INSERT INTO t1 (v) SELECT 'x' FROM generate_series(1, 50); INSERT INTO t2 (t1) SELECT generate_series(1, 50); INSERT INTO t3 SELECT i, 'x' FROM generate_series(1, 50) i;
