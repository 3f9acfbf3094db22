"""The pages, one module each: what a page shows (``data``, without HTTP), and its handlers."""
