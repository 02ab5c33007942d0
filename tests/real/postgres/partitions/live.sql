UPDATE parts SET at = at + 30 WHERE id % 3 = 0;
UPDATE parts SET id = id + 1000 WHERE id % 5 = 0;
UPDATE parts SET v = v || 'x';
DELETE FROM parts WHERE at > '2026-04-01';
INSERT INTO parts_b0 SELECT id, at, 'direct' FROM (SELECT i AS id, date '2026-02-10' AS at FROM generate_series(5000, 5100) i) s WHERE satisfies_hash_partition('parts_b'::regclass, 2, 0, id);
TRUNCATE parts_a;
INSERT INTO parts VALUES (9000, '2026-01-15', 'after');
UPDATE listed SET k = 'w' WHERE k = 'x'; UPDATE listed SET k = 'x', n = 10 WHERE k = 'z'; DELETE FROM listed WHERE k = 'y';
UPDATE part_heap SET a = (a + 150) % 200 WHERE b % 4 = 0; DELETE FROM part_heap WHERE b % 10 = 0; UPDATE part_heap SET b = -b WHERE a < 10;
