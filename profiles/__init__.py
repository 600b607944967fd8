"""Hardware: one TOML per device, its loader, and the cost model."""

if __name__ != "advisor.profiles":
    raise ImportError("import advisor.profiles, not the folder profiles/: one module, one identity")
