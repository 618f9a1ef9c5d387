"""Predicts the time and the cost of a round, and sizes the functions."""
