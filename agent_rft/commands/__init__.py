"""One module a command: each wires settings, adapters and drivers together and says what it does. Nobody else imports them."""
