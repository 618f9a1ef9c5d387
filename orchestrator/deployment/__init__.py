"""Terraform, the function zip, and the outputs of an environment."""
