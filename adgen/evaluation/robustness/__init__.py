"""How far scores move when what they score does not change."""
