"""The D-Bus front end."""
