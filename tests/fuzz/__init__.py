"""Parsers under atheris, which looks at what code an input reaches: `make fuzz`."""
