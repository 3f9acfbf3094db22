-- The one place where the ledger asks for the time. Being a function of the
-- schema, a test can put another clock there; a planner inlines this one.
CREATE FUNCTION {schema}.clock()
RETURNS timestamptz
LANGUAGE sql
STABLE
AS 'SELECT statement_timestamp()';

-- The version that the oldest pharox was made for that can use this schema. A later version that
-- takes away what an older pharox calls says its own here; any other one leaves this as it is.
CREATE FUNCTION {schema}.oldest_client()
RETURNS text
LANGUAGE sql
STABLE
AS 'SELECT ''0001''';
