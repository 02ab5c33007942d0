UPDATE secured SET v = 'w' WHERE id < 10;
DELETE FROM secured WHERE id > 15;
INSERT INTO secured VALUES (100, 'y', 'z');
