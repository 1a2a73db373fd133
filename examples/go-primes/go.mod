module go-primes

go 1.21
