"""A sweep file becomes a validated sweep, and that the graph of its cells with their keys."""
