"""What is measured on one machine without a GPU, by parts of `make benchmarks`."""
