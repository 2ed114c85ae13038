"""adgen: one personalized advertising creative per (user, product) pair, every night, into object storage.

Importing the package imports nothing heavy; each folder says in its own docstring what it needs.
"""

__version__ = "0.2.0"
