"""The queue dialect: when each unit of an explicit machine does what. Types only: ops come with the machines."""
