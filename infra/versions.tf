# Nothing is deployed from here. This directory is the root from which `terraform test` finds tests/ and reaches every
# module by a short path.
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}
