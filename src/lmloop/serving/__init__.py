"""Takes: a checkpoint folder. Gives: OpenAI's HTTP interface and a chat page on it.

An engine process per weights version does the arithmetic; this process routes, counts and records.
"""
