-- Tell whether an event is one that could be read back, and folded.
CREATE OR REPLACE FUNCTION {schema}.is_event_v1(event {schema}.event_v1)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT
        CASE event.type
            WHEN 'LeaseAcquired' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.expires_at IS NOT NULL AND event.acquired_at IS NULL
            WHEN 'LeaseRenewed' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.proxy_id IS NOT NULL AND event.status_before IS NULL
                AND event.acquired_at IS NOT NULL AND event.expires_at IS NOT NULL
            WHEN 'LeaseReleased' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL
            WHEN 'LeaseRevoked' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL AND event.data ? 'reason'
            WHEN 'LeaseExpired' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL AND event.expires_at IS NOT NULL
            WHEN 'AcquireMissed' THEN
                event.consumer IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.selector IS NOT NULL AND event.data ? 'reason'
            WHEN 'HealthChecked' THEN
                event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{applied,status,reachable,protocol,checked_at}'
            WHEN 'ProxiesChecked' THEN
                event.proxy_id IS NULL AND {schema}.are_checks_v1(event.proxy_ids, event.data)
            WHEN 'ProxyRegistered' THEN
                event.status_before IS NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{host,port,protocol,checked_at}'
            WHEN 'ProxyChanged' THEN
                event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{host,port,protocol,checked_at}'
            WHEN 'ProxyRemoved' THEN
                event.status_before IS NOT NULL AND event.status_after IS NULL
            WHEN 'PoolRegistered' THEN event.data ?& '{name,lease_slow}'
            WHEN 'PoolChanged' THEN event.data ?& '{name,lease_slow}'
            WHEN 'PoolRemoved' THEN event.data ? 'name'
            WHEN 'ConsumerRegistered' THEN
                event.consumer IS NOT NULL AND event.consumer_id IS NOT NULL
            WHEN 'CursorMoved' THEN event.proxy_id IS NOT NULL AND event.selector IS NOT NULL
            WHEN 'LeasesPruned' THEN event.data ? 'ended_before'
            WHEN 'OutcomeReported' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.proxy_id IS NOT NULL AND event.status_before IS NULL
                AND event.data ? 'outcome'
            WHEN 'CoolDownSet' THEN
                event.proxy_id IS NOT NULL AND event.status_before IS NULL
                AND event.data ? 'target'
            WHEN 'TargetTroubled' THEN
                event.pool_name IS NOT NULL AND event.data ?& '{target,proxies,failed}'
            WHEN 'TargetRecovered' THEN event.pool_name IS NOT NULL AND event.data ? 'target'
            WHEN 'ActionTaken' THEN
                event.proxy_id IS NULL AND event.data ?& '{action,subject,reason}'
            WHEN 'ApiTokenIssued' THEN
                event.consumer IS NOT NULL AND event.proxy_id IS NULL
                AND event.data ?& '{token_id,digest,rights,pools}'
            WHEN 'ApiTokenWithdrawn' THEN
                event.consumer IS NOT NULL AND event.proxy_id IS NULL AND event.data ? 'token_id'
            WHEN 'PoolPlaced' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NULL AND event.data ? 'ledger'
            WHEN 'PoolMoveBegan' THEN
                event.pool_name IS NOT NULL AND event.data ?& '{move_id,ledger}'
            WHEN 'PoolStateCarried' THEN
                event.pool_name IS NOT NULL AND event.data ?& '{move_id,ledger,read_model,rows}'
            WHEN 'PoolDeparted' THEN
                event.pool_name IS NOT NULL
                AND event.data ?& '{move_id,ledger,last_seq,last_position,first_position,carried}'
            WHEN 'PoolArrived' THEN
                event.pool_name IS NOT NULL
                AND event.data ?& '{move_id,ledger,last_seq,last_position}'
            WHEN 'PoolMoved' THEN
                event.pool_name IS NOT NULL
                AND event.data ?& '{move_id,ledger,last_seq,last_position}'
            WHEN 'PoolMoveCancelled' THEN
                event.pool_name IS NOT NULL AND event.data ?& '{move_id,ledger}'
            WHEN 'TargetRulesSet' THEN
                event.proxy_id IS NULL AND event.data ? 'target'
            WHEN 'SourceSaved' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NULL
                AND event.data ?& '{source,source_id,host,every_seconds,max_removed,enabled,secret_id}'
            WHEN 'SourceRemoved' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NULL
                AND event.data ?& '{source,source_id}'
            WHEN 'SourceRefreshed' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NULL
                AND event.data ?& '{source,source_id,counts}'
            WHEN 'SourceFailed' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NULL
                AND event.data ?& '{source,source_id,reason}'
            WHEN 'SessionBound' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.expires_at IS NOT NULL AND event.status_before IS NULL
                AND event.data ? 'key'
            WHEN 'SessionForgotten' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.status_before IS NULL AND event.data ? 'key'
            WHEN 'ExitRotated' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.status_before IS NULL
                AND event.data ?& '{session_before,session_after}'
            WHEN 'RotationBegan' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{because,ends_at,rests_until}'
            WHEN 'RotationCalled' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{because,claimed_until,rests_until}'
            WHEN 'RotationAnswered' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
            ELSE false
        END
        AND (event.proxy_ids IS NULL OR event.type = 'ProxiesChecked')
        AND (event.status_before IS NULL AND event.status_after IS NULL OR event.proxy_id IS NOT NULL)
        AND (event.status_before IS NULL
             OR event.status_before IN ('active', 'inactive', 'slow', 'banned')
             AND event.leases_before >= 0)
        AND (event.status_after IS NULL
             OR event.status_after IN ('active', 'inactive', 'slow', 'banned')
             AND event.leases_after >= 0)
        AND coalesce(isfinite(event.expires_at), true)
        AND coalesce(isfinite(event.acquired_at), true)
        AND coalesce(jsonb_typeof(event.data) = 'object', true)
$$;
