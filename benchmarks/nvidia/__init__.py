"""What an NVIDIA card really does, to hold against its profile."""
