-- Which pools and types of events a range of the log's blocks may have, in a few bytes a range: what
-- is rare amid what is frequent is found without a scan. A B-tree would cost each append more, and
-- be as long as the log. Existing parts get it after the migration, while others append.
CREATE INDEX ix_events_kinds ON ONLY {schema}.events USING brin (
    pool_id uuid_bloom_ops (n_distinct_per_range = 64),
    type text_bloom_ops (n_distinct_per_range = 32)
) WITH (autosummarize = on, pages_per_range = 32);
