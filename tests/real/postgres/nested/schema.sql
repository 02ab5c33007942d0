CREATE TYPE mood AS ENUM ('calm', 'so-so', 'wild ''n'' "free"');
CREATE TYPE pair AS (a int, b text);
CREATE TYPE deep AS (p pair, l pair[], m mood);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN pairs AS pair[];
CREATE DOMAIN moods AS mood[];
CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TABLE nested (
    id int PRIMARY KEY, a int[], t text[], aa int[], m mood, ms mood[], p pair, ps pair[], d deep, ds deep[],
    po positive, pd pairs, md moods, r int4range, rm int4multirange, tr tstzrange, s span, sm span[], nr numrange
);
CREATE TABLE by_mood (m mood, p pair, n int, PRIMARY KEY (m, p));
