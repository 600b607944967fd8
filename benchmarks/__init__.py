"""Comparisons with other tools, and their committed results."""
