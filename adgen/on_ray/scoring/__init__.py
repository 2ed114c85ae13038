"""Scoring creatives with networks on Ray workers; the publish gate and evaluation both stand on it."""
