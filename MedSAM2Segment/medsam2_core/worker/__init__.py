"""The worker: heavy work in a process of its own, spoken to over its standard input and output."""
