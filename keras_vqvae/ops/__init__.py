"""Pure functions of arrays, on every backend."""
