"""Random mutations of what adgen reads; tests/long/test_fuzz.py."""
