"""What every test shares."""

from hypothesis import settings

# No deadline: a test asks whether an answer is right, and a busy machine is no wrong answer.
settings.register_profile("ollamalab", deadline=None)
settings.load_profile("ollamalab")
