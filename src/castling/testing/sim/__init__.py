"""A whole group in one process: the real ends over simulated machines, by seed. See docs/simulation.md."""
