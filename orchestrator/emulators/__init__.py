"""AWS emulators on this machine: MiniStack and LocalStack."""
