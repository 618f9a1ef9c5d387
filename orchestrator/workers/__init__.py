"""Does the functions' work on any machine, from the same queues."""
