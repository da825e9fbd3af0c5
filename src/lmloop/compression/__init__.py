"""Takes a checkpoint; gives a smaller checkpoint that has been measured against it."""
