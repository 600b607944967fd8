"""What layers cost on this machine, found by timing whole models on its runtime."""
