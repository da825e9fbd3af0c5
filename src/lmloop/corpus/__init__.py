"""Takes files, folders and packages with raw text;
gives clean documents and conversations in three splits, and a report of what was dropped."""
