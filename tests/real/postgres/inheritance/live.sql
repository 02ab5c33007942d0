UPDATE animals SET name = name || '!' WHERE id < 5;
UPDATE ONLY animals SET name = 'only' WHERE id = 6;
DELETE FROM dogs WHERE id = 7;
INSERT INTO poodles VALUES (100, 'new', 'c', 9);
TRUNCATE ONLY animals;
UPDATE dogs SET breed = NULL WHERE id = 2;
