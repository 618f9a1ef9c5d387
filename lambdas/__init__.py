"""The code that runs on AWS Lambda: the round's protocol, the arithmetic, the storage and the two workers."""
