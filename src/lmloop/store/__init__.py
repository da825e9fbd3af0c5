"""Takes what the stages make; gives artifacts on disk, the database and the model registry."""
