"""Who writes answers: a local model, or any OpenAI-compatible server."""
