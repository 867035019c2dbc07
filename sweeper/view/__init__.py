"""The sweeps of a store in a browser, while they run: what is told, and who serves it."""
