"""Draw an incident: HTML and SVG of what was gathered."""
