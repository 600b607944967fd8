"""ONNX Runtime: plans against float32 and its own quantizers; see README.md in this folder."""
