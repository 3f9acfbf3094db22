"""What the commands beside this file do in Python; run from the checkout, never installed."""
