INSERT INTO nested (id, ps, ds, md) VALUES
    (10, ARRAY[ROW(10, E'\\ " , ( ) \n')::pair], ARRAY[ROW(NULL, ARRAY[NULL::pair], 'calm')::deep], '{so-so}');
UPDATE nested SET a = a || 7, t = t || ARRAY['ü', NULL], p = ROW((p).a, 'changed') WHERE id <> 2;
UPDATE nested SET r = r * '[0,100]', m = 'so-so', sm = array_append(sm, '[3,4)'), po = 9 WHERE id = 3;
UPDATE by_mood SET n = n + 10, m = 'wild ''n'' "free"' WHERE n = 2;
UPDATE by_mood SET p = '(2,b)' WHERE n = 1;
DELETE FROM by_mood WHERE n = 3;
DELETE FROM nested WHERE id = 2;
