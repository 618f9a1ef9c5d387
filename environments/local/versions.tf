# Terraform, state and provider of the environment on this machine: an AWS emulator, without an account and without cost.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # The state is worth as much as the emulator that it describes, so it stays in this directory.
  backend "local" {
    path = "terraform.tfstate"
  }
}

variable "aws_endpoint_url" {
  description = "URL of the AWS emulator, http or https, without a path."
  type        = string
  default     = "http://127.0.0.1:4566"
}

locals {
  endpoint_url = var.aws_endpoint_url
}

provider "aws" {
  region = var.region

  # The emulator accepts any credentials. Setting them here keeps real ones from being sent to it.
  access_key = "test"
  secret_key = "test"

  # There is no account that these checks could ask about.
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
  skip_region_validation      = true

  # <bucket>.127.0.0.1 is not a host name, so the bucket goes into the path.
  s3_use_path_style = true

  endpoints {
    cloudwatch     = var.aws_endpoint_url
    cloudwatchlogs = var.aws_endpoint_url
    iam            = var.aws_endpoint_url
    kms            = var.aws_endpoint_url
    lambda         = var.aws_endpoint_url
    s3             = var.aws_endpoint_url
    sns            = var.aws_endpoint_url
    sqs            = var.aws_endpoint_url
    sts            = var.aws_endpoint_url
  }

  default_tags {
    tags = local.tags
  }
}
