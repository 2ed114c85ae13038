"""Inputs: tables, the coarse draw of a history (history.py), the catalog, the plan, the synthetic shop. No torch here."""
