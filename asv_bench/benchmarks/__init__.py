"""Benchmarks of every operation of the table, for airspeed velocity."""
