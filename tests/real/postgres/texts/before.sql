INSERT INTO texts VALUES
    (1, '', '', '', '', '', '', B'00000', B'', '00000000-0000-0000-0000-000000000000'),
    (2, E'tab\t newline\n cr\r backslash\\ quote'' "x" \\N \\.', 'é木🦀', 'ab', E'\\200', repeat('n', 63), '\x00ff5c', B'10101', B'1', NULL),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, '\N', 'NULL', '     ', 'x', 'null', '\x', B'11111', repeat('10', 35)::bit varying, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
