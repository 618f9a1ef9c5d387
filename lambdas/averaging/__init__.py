"""The arithmetic of the average, over streams that the caller opens. No AWS."""
