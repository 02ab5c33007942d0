"""The control plane: store, service, API, agent. The data plane runs on when it is down."""
