-- What must find its rows by an index turns other ways off. Before PostgreSQL 18 a way that is off, and
-- taken as there is no other, counts as very dear, and what is dear is compiled where PostgreSQL has
-- LLVM: a hundred milliseconds for a statement that takes one. So these compile nothing. Those that
-- this revision states say so themselves.
ALTER FUNCTION {schema}.lease_commands_v1 SET jit = off;
ALTER FUNCTION {schema}.acquire_one_v1 SET jit = off;
ALTER FUNCTION {schema}.wait_v1 SET jit = off;
ALTER FUNCTION {schema}.renew_leases_v1 SET jit = off;
ALTER FUNCTION {schema}.leased_proxy_v1 SET jit = off;
ALTER FUNCTION {schema}.redate_leases_v1 SET jit = off;
ALTER FUNCTION {schema}.wait_v2 SET jit = off;
ALTER FUNCTION {schema}.lease_commands_v2 SET jit = off;
ALTER FUNCTION {schema}.acquire_one_v2 SET jit = off;
ALTER FUNCTION {schema}.release_one_v2 SET jit = off;
ALTER FUNCTION {schema}.wait_sticky_v1 SET jit = off;
ALTER FUNCTION {schema}.forget_session_v1 SET jit = off;
