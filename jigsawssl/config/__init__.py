"""Configuration: typed schemas hold every default; a YAML file and then ``key=value`` arguments override them."""
