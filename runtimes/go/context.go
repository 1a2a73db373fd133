package nanogrid

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"
)

// Invocation says which call is being served; get it with FromContext.
type Invocation struct {
	ID       string
	Attempt  int
	Deadline time.Time // Zero when the function has no time limit.
	Type     string    // Content type of the event.
	Function string
	Version  int
	MemoryMB int
}

type contextKey struct{}

// call ties a context to the channel until the handler returned.
type call struct {
	invocation Invocation
	channel    *channel
	over       atomic.Bool
}

var errNoInvocation = errors.New("nanogrid: the context is not that of a running invocation")

// FromContext returns the invocation that ctx belongs to.
func FromContext(ctx context.Context) (Invocation, bool) {
	if c, ok := ctx.Value(contextKey{}).(*call); ok {
		return c.invocation, true
	}
	return Invocation{}, false
}

// Progress reports how far the invocation is; v is any value that encodes to JSON.
func Progress(ctx context.Context, v any) error {
	c, ok := ctx.Value(contextKey{}).(*call)
	if !ok || c.over.Load() {
		return errNoInvocation
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.channel.send(kindProgress, map[string]json.RawMessage{"progress": encoded}, nil)
}

// Emit sends a piece of output to the caller before the handler returns.
func Emit(ctx context.Context, chunk []byte) error {
	c, ok := ctx.Value(contextKey{}).(*call)
	if !ok || c.over.Load() {
		return errNoInvocation
	}
	return c.channel.send(kindPartial, struct{}{}, chunk)
}
