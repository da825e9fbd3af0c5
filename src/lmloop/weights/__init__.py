"""The weights of others, and our own at rest: files, names, layouts, adapters."""
