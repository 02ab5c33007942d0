CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
CREATE TABLE embedded (id int PRIMARY KEY, v public.vector(3), h public.halfvec(4), s public.sparsevec(100), free public.vector);
CREATE INDEX ON embedded USING hnsw (v public.vector_l2_ops);
CREATE TABLE by_vector (v public.vector(2) PRIMARY KEY, n int);
