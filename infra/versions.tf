# The Terraform and provider versions of every module, which link to this file. Nothing is deployed from this directory;
# it is the root from which `terraform test` finds tests/.
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}
