"""Real servers, real faults and the simulator: what proves the product, shipped with it."""
