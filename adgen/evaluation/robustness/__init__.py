"""How far scores move when what they judge does not change."""
