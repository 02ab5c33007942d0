INSERT INTO papers VALUES (1, '<a b="1">ü &amp; &#1071;</a>', ARRAY['<x/>', 'text only']::xml[]), (2, NULL, '{}'), (3, '', NULL);
INSERT INTO papers VALUES (4, '<?xml version="1.0" encoding="UTF-8"?><doc>Ünïcode</doc>', NULL);
INSERT INTO loose_papers VALUES ('<a/>'), ('<a/>'), ('<a></a>'), (NULL);
