"""Everything at once, for as long as one likes, with faults: see ``scripts/soak``."""
