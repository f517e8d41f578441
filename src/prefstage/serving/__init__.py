"""OpenAI-compatible servers: the client, and starting and stopping one."""
