"""The client's side of a round: submit an update, fetch the global model, with AWS credentials or an invitation."""
