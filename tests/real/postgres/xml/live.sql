UPDATE papers SET body = xmlelement(name wrapped, body) WHERE id < 3;
UPDATE papers SET parts = array_append(parts, '<?pi?><!-- c --><z/>'::xml);
INSERT INTO papers SELECT i, ('<n>' || repeat('long ', 3000) || i || '</n>')::xml FROM generate_series(10, 20) i;
UPDATE papers SET id = id + 100 WHERE id > 15;
DELETE FROM papers WHERE id = 12;
DELETE FROM loose_papers WHERE ctid = (SELECT min(ctid) FROM loose_papers WHERE body::text = '<a/>');
UPDATE loose_papers SET body = '<b/>' WHERE body::text = '<a></a>';
