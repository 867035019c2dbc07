"""Speed, measured: `python -m tests.benchmarks` prints a table and writes it as Parquet."""
