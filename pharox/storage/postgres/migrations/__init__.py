"""The schema's history. ``HEAD`` is the version that this code needs."""

HEAD = "0006"
