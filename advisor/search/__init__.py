"""Choosing a plan: feasibility, exact start, measured refinement. Nothing here loads torch."""
