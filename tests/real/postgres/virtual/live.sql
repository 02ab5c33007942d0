UPDATE computed SET a = NULL, b = 'ß' WHERE id % 3 = 0;
UPDATE computed SET id = id + 1000 WHERE v > 60;
INSERT INTO computed (id, a) VALUES (500, -1);
DELETE FROM computed WHERE w = 'B7';
UPDATE checked SET a = a + 5000 WHERE id > 10; DELETE FROM checked WHERE v = 4; INSERT INTO checked (id, a) VALUES (100, 1);
UPDATE parted SET at = at + 100 WHERE y % 20 = 0 AND at < '2026-09-01'; DELETE FROM parted WHERE y = 50;
