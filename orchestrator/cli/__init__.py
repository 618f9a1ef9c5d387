"""The command line. Only these modules import click."""
