INSERT INTO things SELECT i, (CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END)::kind, 'v' || i, NULL FROM generate_series(1, 30) i;
INSERT INTO owned SELECT generate_series(1, 10);
INSERT INTO tuned SELECT i, repeat('x', i * 100) FROM generate_series(1, 30) i;
