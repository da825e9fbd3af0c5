"""Takes a checkpoint and held-out text; gives a report: figures, curves and sample answers."""
