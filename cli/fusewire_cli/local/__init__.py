"""The local runner: broker, database and all services on one machine."""
