"""Operations on the whole log: subscriptions, the archive, verifying, rebuilding, roles."""
