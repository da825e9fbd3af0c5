"""Takes what was served; gives signals, drift alarms, a summary and a page to look at."""
