"""Expose metrics to Prometheus: an HTTP server, and labels with a bounded number of values."""
