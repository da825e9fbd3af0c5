"""Takes shards and a shape or a checkpoint; gives a checkpoint trained, with its log."""
