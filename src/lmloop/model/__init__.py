"""Takes token ids; gives logits: the model core, its costs, and its checkpoint folder."""
