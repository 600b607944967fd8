"""Runtimes: what each supports, how a quantized graph is lowered, read back and run."""

if __name__ != "advisor.targets":
    raise ImportError("import advisor.targets, not the folder targets/: one module, one identity")
