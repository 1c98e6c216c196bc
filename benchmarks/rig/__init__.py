"""What is measured on two machines that are one (`make rig`), by parts of `make benchmarks`."""
