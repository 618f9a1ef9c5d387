"""Predicts what a round takes and costs, and sizes the functions."""
