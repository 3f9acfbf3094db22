"""The parts of scripts/check and scripts/demo that are written in Python."""
