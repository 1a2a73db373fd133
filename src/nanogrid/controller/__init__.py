"""A controller: the HTTP API of the grid. Stateless: any controller serves any request."""
