// Package nanogrid serves a Go function on a NanoGrid worker.
//
//	func main() {
//		nanogrid.Start(func(ctx context.Context, event Order) (Receipt, error) { ... })
//	}
package nanogrid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type loadMeta struct {
	Function string `json:"function"`
	Version  int    `json:"version"`
	MemoryMB int    `json:"memory_mb"`
}

type invokeMeta struct {
	ID         string `json:"id"`
	Attempt    int    `json:"attempt"`
	DeadlineMS int64  `json:"deadline_ms"`
	Type       string `json:"type"`
}

type failure struct {
	Type    string   `json:"type"`
	Message string   `json:"message"`
	Stack   []string `json:"stack"`
	Class   string   `json:"class,omitempty"`
}

type resultMeta struct {
	Type string `json:"type,omitempty"`
}

// Start serves invocations with handler until the worker closes the connection; it never returns.
//
// The handler is func(context.Context, In) (Out, error), where In is any type that the event decodes
// into as JSON (json.RawMessage and []byte get the event's own bytes) and Out any type that encodes to
// JSON ([]byte is sent as it is). The context and the event may be left out, and so may Out.
func Start(handler any) {
	started := time.Now()
	c, load, err := connect()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	invoke, err := adapt(handler)
	if err != nil {
		_ = c.send(kindLoadFailed, failure{Type: "HandlerError", Message: err.Error(), Stack: []string{}}, nil)
		os.Exit(1)
	}
	limitMemory(load.MemoryMB)
	elapsed := float64(time.Since(started).Microseconds()) / 1000
	if c.send(kindLoaded, map[string]float64{"init_ms": elapsed}, nil) != nil {
		os.Exit(1)
	}
	go watch(c.file.Fd())
	serve(c, load, invoke)
}

// connect takes over the socket and hides it from user code and its children.
func connect() (*channel, loadMeta, error) {
	var load loadMeta
	fd, err := strconv.Atoi(os.Getenv("NANOGRID_FD"))
	if err != nil {
		return nil, load, errors.New("nanogrid: this program is a function and is started by a NanoGrid worker; " +
			"deploy it with: nanogrid deploy")
	}
	if err := json.Unmarshal([]byte(os.Getenv("NANOGRID_LOAD")), &load); err != nil {
		return nil, load, fmt.Errorf("nanogrid: NANOGRID_LOAD is not valid: %w", err)
	}
	os.Unsetenv("NANOGRID_FD")
	os.Unsetenv("NANOGRID_LOAD")
	syscall.CloseOnExec(fd)
	return &channel{file: os.NewFile(uintptr(fd), "nanogrid")}, load, nil
}

// limitMemory makes the collector work harder before the sandbox's limit is hit; GOMEMLIMIT wins.
func limitMemory(mb int) {
	if mb > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(mb) << 20 * 9 / 10)
	}
}

func serve(c *channel, load loadMeta, invoke invoker) {
	for {
		kind, meta, event, err := c.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(0)
		}
		if kind == kindInvoke && one(c, load, invoke, meta, event) != nil {
			os.Exit(1)
		}
	}
}

// one serves a single invocation; the error is that of the channel, never the handler's.
func one(c *channel, load loadMeta, invoke invoker, meta, event []byte) error {
	var m invokeMeta
	if err := json.Unmarshal(meta, &m); err != nil {
		return err
	}
	if m.Type == "" {
		m.Type = "application/json"
	}
	current := &call{channel: c, invocation: Invocation{
		ID: m.ID, Attempt: m.Attempt, Type: m.Type,
		Function: load.Function, Version: load.Version, MemoryMB: load.MemoryMB,
	}}
	ctx := context.WithValue(context.Background(), contextKey{}, current)
	cancel := context.CancelFunc(func() {})
	if m.DeadlineMS > 0 {
		current.invocation.Deadline = time.UnixMilli(m.DeadlineMS)
		ctx, cancel = context.WithDeadline(ctx, current.invocation.Deadline)
	}
	result, kind, fail := guarded(ctx, invoke, event)
	current.over.Store(true)
	cancel()
	if fail != nil {
		return c.send(kindError, fail, nil)
	}
	return c.send(kindResult, resultMeta{kind}, result)
}

// guarded calls the handler and turns an error or a panic into a failure.
func guarded(ctx context.Context, invoke invoker, event []byte) (result []byte, kind string, fail *failure) {
	defer func() {
		if p := recover(); p != nil {
			fail = &failure{Type: "panic", Message: fmt.Sprint(p), Stack: stack()}
			if err, ok := p.(error); ok {
				fail.Type = typeName(err)
			}
		}
	}()
	result, kind, err := invoke(ctx, event)
	if err == nil {
		return result, kind, nil
	}
	fail = &failure{Type: typeName(err), Message: err.Error(), Stack: causes(err)}
	var bad *resultError
	if errors.As(err, &bad) {
		fail.Class = "RESULT_INVALID"
	}
	return nil, "", fail
}

// stack is the panicking goroutine's calls, innermost first, without the runtime's own.
func stack() []string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs)])
	lines := []string{}
	for {
		frame, more := frames.Next()
		if strings.HasPrefix(frame.Function, "nanogrid.") {
			break
		}
		if !strings.HasPrefix(frame.Function, "runtime.") {
			lines = append(lines, fmt.Sprintf("%s (%s:%d)", frame.Function, frame.File, frame.Line))
		}
		if !more {
			break
		}
	}
	return lines
}

// causes lists what an error wraps, outermost first.
func causes(err error) []string {
	lines := []string{}
	for inner := errors.Unwrap(err); inner != nil && len(lines) < 20; inner = errors.Unwrap(inner) {
		lines = append(lines, "caused by "+typeName(inner)+": "+inner.Error())
	}
	return lines
}

func typeName(err error) string {
	var bad *resultError
	if errors.As(err, &bad) {
		return "ResultError"
	}
	var event *eventError
	if errors.As(err, &event) {
		return "EventError"
	}
	name := strings.TrimPrefix(reflect.TypeOf(err).String(), "*")
	if name == "errors.errorString" || name == "fmt.wrapError" || name == "fmt.wrapErrors" {
		return "error"
	}
	return name
}
