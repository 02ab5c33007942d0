"""From the remote journal to the replica: which transactions go together, and exactly once."""
