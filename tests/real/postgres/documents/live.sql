INSERT INTO documents (id, b, v) SELECT i, jsonb_build_object('k' || i, repeat('v', i * 50), 'n', i / 3.0),
    to_tsvector('english', repeat('the quick brown foxes jumped ', i)) FROM generate_series(10, 60) i;
UPDATE documents SET b = b || '{"added": [null, true, -0.0]}' WHERE jsonb_typeof(b) = 'object';
UPDATE documents SET j = '{"x":1}', q = q && 'new' WHERE id IN (1, 4);
UPDATE documents SET v = v || 'end:9' WHERE id = 4;
DELETE FROM documents WHERE id % 5 = 0;
