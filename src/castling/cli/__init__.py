"""The command line: a face of the service. Commands ask the local agent and show its answers."""
