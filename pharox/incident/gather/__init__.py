"""Gather the data of an incident page: a window of the log, folded into a picture."""
