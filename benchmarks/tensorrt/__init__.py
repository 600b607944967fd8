"""What was tried with TensorRT's compiler."""
