UPDATE embedded SET v = v + '[1,1,1]', free = '[9]' WHERE id % 2 = 0; DELETE FROM embedded WHERE id > 30; INSERT INTO embedded (id, v) VALUES (100, '[1e-30,-0,3e38]');
UPDATE by_vector SET v = '[-0,1]', n = 10 WHERE n = 1; DELETE FROM by_vector WHERE v = '[1,0]';
