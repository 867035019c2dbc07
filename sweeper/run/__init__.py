"""One cell is run, then a graph of them, here or through Ray Tune; its cost, and what is shown."""
