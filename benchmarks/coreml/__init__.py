"""Benchmarks of Core ML."""
