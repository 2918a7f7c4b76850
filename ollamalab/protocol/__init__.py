"""Ollama's wire format: names, requests, NDJSON lines, durations, error bodies."""
