"""The command line. Imports of the server side happen inside the commands that need them."""
