"""pharox.gunicorn, within the real gunicorn."""
