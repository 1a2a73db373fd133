module nanogrid

go 1.18
