"""What runs inside the engine image: the controller, a vLLM server, and their health checks."""
