terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # The state of an emulator is worth as much as the emulator: it stays in this directory.
  backend "local" {
    path = "terraform.tfstate"
  }
}
