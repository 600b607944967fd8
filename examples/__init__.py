"""Worked examples; see README.md in this folder."""
