"""Scores of titles."""
