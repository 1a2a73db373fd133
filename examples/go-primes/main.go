// Counts primes with a segmented sieve: memory stays at a few hundred KiB whatever the limit.
package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"nanogrid"
)

const segment = 1 << 18

// Request is the event.
type Request struct {
	Limit int `json:"limit"`
	Show  int `json:"show"` // How many of the largest primes to list.
}

// Answer is the result.
type Answer struct {
	Limit   int     `json:"limit"`
	Count   int     `json:"count"`
	Largest []int   `json:"largest"`
	TookMS  float64 `json:"took_ms"`
}

func main() {
	nanogrid.Start(handle)
}

func handle(ctx context.Context, r Request) (Answer, error) {
	if r.Limit < 2 || r.Limit > 1e11 {
		return Answer{}, fmt.Errorf("limit must be 2 to 100000000000, not %d", r.Limit)
	}
	began := time.Now()
	answer := Answer{Limit: r.Limit, Largest: []int{}}
	base := small(int(math.Sqrt(float64(r.Limit))) + 1)
	told := 0
	for low := 0; low <= r.Limit; low += segment {
		if err := ctx.Err(); err != nil {
			return Answer{}, err
		}
		high := min(low+segment-1, r.Limit)
		for _, prime := range sieve(base, low, high) {
			answer.Count++
			answer.Largest = append(answer.Largest, prime)
		}
		if extra := len(answer.Largest) - r.Show; extra > 0 {
			answer.Largest = append([]int{}, answer.Largest[extra:]...)
		}
		if percent := high * 100 / r.Limit; percent >= told+10 {
			told = percent
			if err := nanogrid.Progress(ctx, map[string]int{"percent": percent, "found": answer.Count}); err != nil {
				return Answer{}, err
			}
		}
	}
	answer.TookMS = float64(time.Since(began).Microseconds()) / 1000
	fmt.Printf("%d primes up to %d\n", answer.Count, r.Limit)
	return answer, nil
}

// sieve returns the primes from low to high, given all primes up to the root of high.
func sieve(base []int, low, high int) []int {
	composite := make([]bool, high-low+1)
	for _, p := range base {
		if p*p > high {
			break
		}
		for n := max(p*p, (low+p-1)/p*p); n <= high; n += p {
			composite[n-low] = true
		}
	}
	primes := []int{}
	for i, c := range composite {
		if n := low + i; !c && n > 1 {
			primes = append(primes, n)
		}
	}
	return primes
}

func small(limit int) []int {
	primes := []int{}
	for n := 2; n <= limit; n++ {
		prime := true
		for _, p := range primes {
			if p*p > n {
				break
			}
			if n%p == 0 {
				prime = false
				break
			}
		}
		if prime {
			primes = append(primes, n)
		}
	}
	return primes
}
