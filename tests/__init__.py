"""Tests, by tier: unit, simulation, bus, vm."""
