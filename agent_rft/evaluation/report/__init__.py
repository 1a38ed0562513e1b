"""One run, or several, told as a page that asks nothing of the network, runs no script, and escapes whatever came from outside."""
