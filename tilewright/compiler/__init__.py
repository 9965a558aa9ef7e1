"""The one place that knows all rooms: capture -> passes -> backend -> program."""
