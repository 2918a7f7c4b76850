"""The response cache: repeated questions are answered without the model."""
