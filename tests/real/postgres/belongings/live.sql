UPDATE things SET k = 'a', secret = 's' WHERE id < 10; DELETE FROM things WHERE id = 20;
UPDATE owned SET id = id + 100; DELETE FROM owned WHERE id = 105;
UPDATE tuned SET v = v || 'y'; DELETE FROM tuned WHERE id % 3 = 0;
