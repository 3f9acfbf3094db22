-- The one place where the ledger asks for the time. Being a function of the
-- schema, a test can put another clock there; a planner inlines this one.
CREATE FUNCTION {schema}.clock()
RETURNS timestamptz
LANGUAGE sql
STABLE
AS 'SELECT statement_timestamp()';
