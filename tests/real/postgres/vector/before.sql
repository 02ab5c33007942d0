INSERT INTO embedded SELECT i, ARRAY[i, -i, 0.5]::public.vector, ARRAY[i, 1, 2, 3]::public.halfvec, ('{1:1.5,' || i + 1 || ':2}/100')::public.sparsevec, '[1,2,3,4,5]' FROM generate_series(1, 40) i;
INSERT INTO by_vector VALUES ('[0,1]', 1), ('[1,0]', 2);
