INSERT INTO extended VALUES (1, 'a=>1, "b c"=>NULL, "q\""=>"=>,"', 'MiXed', 'Top.Science.Astronomy', '{a.b,c}', '*.x{1,2}.!y',
    '(1,2),(3,4)', '5.0(+-)0.3', '978-0-393-04002-9', '{"a=>1",NULL}'), (2, '', '', '', '{}', NULL, '(0)', '1 .. 2', NULL, '{}');
INSERT INTO by_citext VALUES ('One', 1), ('TWO', 2), ('three', 3);
INSERT INTO by_ltree VALUES ('a', 1), ('a.b', 2), ('a.b.c', 3);
