"""Kernels of our own, each with a plain torch twin that says what it computes."""
