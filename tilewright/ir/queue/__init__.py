"""The queue dialect: when each unit of an explicit machine does what. Its types; its ops come with the machines that run it."""
