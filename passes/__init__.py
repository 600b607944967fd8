"""Compiler passes: a torch.fx graph in, a graph or an analysis out."""

if __name__ != "advisor.passes":
    raise ImportError("import advisor.passes, not the folder passes/: one module, one identity")
