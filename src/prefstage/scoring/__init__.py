"""The log-prob engine: log π(y|x) of many responses to shared prompts, exactly and fast."""
