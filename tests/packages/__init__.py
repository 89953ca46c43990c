"""The built packages: held against the rules of their distributions, looked into, installed and removed."""
