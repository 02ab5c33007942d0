"""Procedures that change what an application's groups do: data, transitions, the engine that runs them.

`procedure` says what a step and a procedure are, `catalog` lists those that are shipped, `run` is one run of
one of them and the pure function from event to state, `steps` what each step does, `scripts` the user's own
programs, `gates` what is looked at before a start, `runner` makes it so, durably. No kind is named here:
what a step asks of a node it asks through `steps.Doors`.
"""
