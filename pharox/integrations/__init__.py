"""pharox inside other libraries: a module for each, imported only by whoever uses it.

Each needs its host, which is an extra of the same name: ``pip install 'pharox[requests]'``. Right
by default: the lease is kept alive and waited for, what became of each request is reported in the
background with its host as target, and the lease comes back whatever happens.
"""
