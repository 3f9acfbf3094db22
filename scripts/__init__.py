"""The Python code of the commands in this folder; run from the checkout, never installed."""
