"""The tune verb: many trainings in search of a recipe's best values."""
