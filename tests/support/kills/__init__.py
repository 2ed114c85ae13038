"""Random kills of commands that run beside each other on one store, and what must hold after each; tests/long/kills.py."""
