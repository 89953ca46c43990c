"""Tests of single modules: no root, no bus, no guest."""
