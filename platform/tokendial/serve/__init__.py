"""The endpoint: token-aware batching, the governor, and the OpenAI-style surface over them."""
