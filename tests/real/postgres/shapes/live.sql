INSERT INTO shapes (id, pt, i) SELECT i, point(i / 3.0, i), ('10.0.' || i || '.1/16')::inet FROM generate_series(10, 40) i;
UPDATE shapes SET pt = pt + point(0.1, 0.2), bx = box(pt, point(1, 1)), l = '1/2' WHERE id > 9;
UPDATE shapes SET po = polygon(box '((0,0),(2,2))'), i = '::/0', ar = ar || point '(9,9)' WHERE id = 1;
DELETE FROM shapes WHERE id % 4 = 0;
