"""One end's life: what runs on which node, and the three processes of a stream."""
