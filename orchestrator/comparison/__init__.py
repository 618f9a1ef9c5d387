"""Runs the same round in every topology and compares time, cost and bytes."""
