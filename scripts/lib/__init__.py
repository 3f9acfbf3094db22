"""The Python code of scripts/check, scripts/demo and scripts/gunicorn_demo."""
