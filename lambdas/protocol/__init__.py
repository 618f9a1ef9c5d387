"""The protocol of a round: keys, documents, messages and file formats. Standard library only."""
