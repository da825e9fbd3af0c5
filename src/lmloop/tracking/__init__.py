"""Runs as others see them: a page, and the files of other trackers."""
