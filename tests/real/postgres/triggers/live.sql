UPDATE quiet SET touched = touched + 1 WHERE id < 10;
DELETE FROM quiet WHERE id > 15;
INSERT INTO quiet VALUES (100, 'lower');
DELETE FROM journalled;
