variable "name_prefix" {
  description = "Start of the names of everything in the environment."
  type        = string
}

variable "bucket" {
  description = "The environment's bucket; kms_key_arn is null with SSE-S3."
  type = object({
    arn         = string
    kms_key_arn = optional(string)
  })
}

variable "result_queue_arn" {
  description = "ARN of the environment's result queue."
  type        = string
}

variable "lane_names" {
  description = "Names of the lanes, each of which is the name of its queue and its function; `?` stands for any character. Dead-letter queues are named <name>-dead-letters."
  type        = list(string)
}

variable "ci" {
  description = "Who may take the CI role: GitHub Actions of github_branch of github_repository (owner/name; null for no role). github_ids: the ids of owner and repository, if the tokens name them. create_github_oidc_provider: whether to register GitHub with the account as an identity provider. terraform_state: the state whose outputs the role may read; null for none."
  type = object({
    github_repository           = optional(string)
    github_ids                  = optional(object({ owner = number, repository = number }))
    github_branch               = optional(string, "main")
    create_github_oidc_provider = optional(bool, false)
    terraform_state             = optional(object({ bucket = string, key = string }))
  })
  default = {}
}

variable "iam" {
  description = "Path of the roles and policies, and the policy that bounds the permissions of roles; null for none."
  type = object({
    path                 = optional(string, "/")
    permissions_boundary = optional(string)
  })
  default = {}
}
