"""Where the users are: each module is thin, and imports the package that it serves only when it is used."""
