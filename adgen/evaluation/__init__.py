"""How good creatives are: the table of scores (scores.py), titles, pictures, results, reports, the proof. No Ray here."""
