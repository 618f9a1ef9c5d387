"""A round from its opening to its report. Imports neither click nor Terraform: these modules run in a function, too."""
