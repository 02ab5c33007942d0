CREATE TABLE secured (id int PRIMARY KEY, owner name DEFAULT current_user, v text);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON secured USING (owner = 'nobody at all') WITH CHECK (true);
