"""Benchmarks of a refresh on Ray: pairs a second, and what each process takes."""
