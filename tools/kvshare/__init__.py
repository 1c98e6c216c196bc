"""kvshare: bring up, prove and measure KV cache reuse between two vLLM servers."""

__version__ = "0.1.0"
