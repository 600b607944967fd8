"""What the cost model predicts, held against published measurements, files, memory and clocks."""
