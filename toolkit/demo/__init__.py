"""The web page: a door like the command line, for a browser on this machine."""
