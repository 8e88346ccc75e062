"""Benchmarks of walpool beside the other ways to use SQLite from Python; `python -m benches.run` runs them."""
