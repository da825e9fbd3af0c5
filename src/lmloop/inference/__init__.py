"""Takes a checkpoint and prompts; gives tokens, answers and scores: the engine that all share."""
