"""Show metrics to whoever scrapes them: a server over HTTP, and labels of a bounded number."""
