"""What is told about modules: counters, usage, status, and a check of the books."""
