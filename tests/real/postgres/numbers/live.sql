INSERT INTO numbers (id, n, r, d) VALUES
    (10, ('1' || repeat('0', 1000))::numeric, 1.17549435e-38, 2.2250738585072014e-308),
    (11, ('0.' || repeat('0', 1000) || '1')::numeric, 3.40282347e+38, 1.7976931348623157e+308),
    (12, 1.50, 0.1, 0.1), (13, 1.5, 16777217, 9007199254740993), (14, 1.500, 1e-45, 5e-324);
UPDATE numbers SET n = n + 1, d = -d, r = -r;
UPDATE numbers SET n = 'NaN', b = NULL, m = m WHERE id IN (3, 12);
UPDATE numbers SET n2 = 1.5, n_neg = 99900 WHERE id > 10;
DELETE FROM numbers WHERE id = 13;
