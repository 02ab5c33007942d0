CREATE TABLE animals (id int PRIMARY KEY, name text);
CREATE TABLE dogs (breed text, PRIMARY KEY (id)) INHERITS (animals);
CREATE TABLE poodles (curl int, PRIMARY KEY (id)) INHERITS (dogs);
