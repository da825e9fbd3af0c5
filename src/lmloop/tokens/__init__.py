"""Takes clean records; gives ids, memory-mapped shards and packed batches (numpy, no torch)."""
