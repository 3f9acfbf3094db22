"""Draw an incident as HTML and SVG from the gathered data."""
