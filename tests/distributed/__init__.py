"""A model on several processes, which talk over loopback."""
