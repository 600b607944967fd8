"""Benchmarks of LiteRT (TFLite)."""
