INSERT INTO documents VALUES
    (1, '{"a": 1, "a": 2,  "z" : [ ] }', '{"a": 1, "a": 2, "b": 1.50, "c": 1e400}', 'a:1A b:2,3C ''it''''s'':4', 'a & !(b | c:*A)', '$.a[*] ? (@ > 1)'),
    (2, 'null', 'null', '', '', 'strict $'),
    (3, '"\u00e9\n\ud83e\udd80"', '"\u00e9\n\ud83e\udd80"', NULL, NULL, NULL),
    (4, '[]', '{}', 'x', 'x <-> y <3> z', '$.**{2 to last}');
