"""Gather what an incident page shows: a window of the log, folded into a picture."""
