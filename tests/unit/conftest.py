"""What the unit tests share."""

from hypothesis import settings

# A busy machine is not a failure, and a failure is to be the same on the next run.
settings.register_profile("kvshare", deadline=None, derandomize=True)
settings.load_profile("kvshare")
