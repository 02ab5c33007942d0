INSERT INTO nested VALUES
    (1, '{}', '{NULL,"","NULL","a,b","\"","\\"}', '[-1:0][2:3]={{1,2},{3,4}}', 'calm', '{calm,"wild ''n'' \"free\""}', '(1,"x,""y")',
     '{"(1,)","(,z)",NULL}', ROW(ROW(1, 'a')::pair, ARRAY[ROW(2, NULL)::pair], 'so-so')::deep, '{}',
     5, ARRAY[ROW(1, 'd')::pair], '{calm,so-so}', 'empty', '{[1,3),[5,)}', '(,)', '[1.5,2.5)', '{"[1,2)",empty}', '(1.0,1.00]'),
    (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (3, '{NULL,1}', '{}', '{{{1}}}', 'wild ''n'' "free"', '{}', '(,)', '{}', NULL, NULL, 1, NULL, '{}', '[1,1]', '{}',
     '[2026-01-01 00:00+00,infinity)', 'empty', '{}', '[,5)');
INSERT INTO by_mood VALUES ('calm', '(1,a)', 1), ('so-so', '(1,a)', 2), ('calm', '(1,)', 3);
