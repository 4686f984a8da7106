"""Instruments of the checks: a clock that is set, counted costs, layers around an engine, logs."""
