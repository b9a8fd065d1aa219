"""For all tests: a slow moment of the machine is no failure."""

from hypothesis import settings

settings.register_profile("preceptor", deadline=None)
settings.load_profile("preceptor")
