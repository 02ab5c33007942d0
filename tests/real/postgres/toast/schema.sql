CREATE TABLE toasted (id int PRIMARY KEY, small int, big text, bigger bytea, doc jsonb);
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL, ALTER bigger SET STORAGE EXTERNAL;
CREATE TABLE toasted_whole (n int, big text);
ALTER TABLE toasted_whole ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE toasted_key (k text PRIMARY KEY, v int, big text);
ALTER TABLE toasted_key ALTER big SET STORAGE EXTERNAL;
