"""How good plans are, what they cost to find, and how far from the best possible ones."""
