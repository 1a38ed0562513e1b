"""The gateway: clients name a service, and are answered by the agent that it is routed to just now."""
