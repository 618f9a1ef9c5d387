"""Runs the functions' handlers on any machine, on jobs from the same queues."""
