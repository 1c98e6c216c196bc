"""One endpoint over all servers: a long prompt is computed on prefill first, then decode answers."""
