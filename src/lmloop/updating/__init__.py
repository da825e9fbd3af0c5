"""Traffic to a better model: collect, update, judge, roll out."""
