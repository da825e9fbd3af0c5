"""Takes token ids; gives logits: the model core, and its costs."""
