terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # The rest is yours: terraform init -backend-config=backend.hcl, made from backend.hcl.example.
  backend "s3" {
    key          = "fedagg/dev/terraform.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}
