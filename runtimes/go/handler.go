package nanogrid

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
)

// invoker is any handler in its plainest form: event bytes in, result bytes and their content type out.
type invoker func(ctx context.Context, event []byte) (result []byte, kind string, err error)

type resultError struct{ cause error }

func (e *resultError) Error() string {
	return "the result cannot be encoded as JSON: " + e.cause.Error()
}
func (e *resultError) Unwrap() error { return e.cause }

type eventError struct{ cause error }

func (e *eventError) Error() string { return "the event does not fit the handler: " + e.cause.Error() }
func (e *eventError) Unwrap() error { return e.cause }

var (
	contextType = reflect.TypeOf((*context.Context)(nil)).Elem()
	errorType   = reflect.TypeOf((*error)(nil)).Elem()
	bytesType   = reflect.TypeOf([]byte(nil))
	rawType     = reflect.TypeOf(json.RawMessage(nil))
)

const shapes = "nanogrid.Start takes func([context.Context,] [event]) ([result,] error)"

// adapt turns every accepted shape of handler into an invoker; the common one costs no reflection.
func adapt(handler any) (invoker, error) {
	if f, ok := handler.(func(context.Context, json.RawMessage) (any, error)); ok {
		if f == nil {
			return nil, fmt.Errorf("the handler is nil; %s", shapes)
		}
		return func(ctx context.Context, event []byte) ([]byte, string, error) {
			result, err := f(ctx, jsonEvent(event))
			if err != nil {
				return nil, "", err
			}
			return encode(result)
		}, nil
	}
	return reflected(handler)
}

func reflected(handler any) (invoker, error) {
	f := reflect.ValueOf(handler)
	if !f.IsValid() || f.Kind() != reflect.Func || f.IsNil() {
		return nil, fmt.Errorf("the handler is a %T; %s", handler, shapes)
	}
	t := f.Type()
	takesContext := t.NumIn() > 0 && t.In(0) == contextType
	events := t.NumIn()
	if takesContext {
		events--
	}
	outs := t.NumOut()
	if events > 1 || t.IsVariadic() || outs < 1 || outs > 2 || t.Out(outs-1) != errorType {
		return nil, fmt.Errorf("the handler is a %s; %s", t, shapes)
	}
	return func(ctx context.Context, event []byte) ([]byte, string, error) {
		args := make([]reflect.Value, 0, 2)
		if takesContext {
			args = append(args, reflect.ValueOf(ctx))
		}
		if events == 1 {
			in, err := decode(event, t.In(t.NumIn()-1))
			if err != nil {
				return nil, "", err
			}
			args = append(args, in)
		}
		results := f.Call(args)
		if err, _ := results[outs-1].Interface().(error); err != nil {
			return nil, "", err
		}
		if outs == 1 {
			return encode(nil)
		}
		return encode(results[0].Interface())
	}, nil
}

// jsonEvent is the event as JSON text; an empty one is null.
func jsonEvent(event []byte) json.RawMessage {
	if len(event) == 0 {
		return json.RawMessage("null")
	}
	return event
}

func decode(event []byte, t reflect.Type) (reflect.Value, error) {
	switch t {
	case bytesType:
		return reflect.ValueOf(event), nil
	case rawType:
		return reflect.ValueOf(jsonEvent(event)), nil
	}
	in := reflect.New(t)
	if err := json.Unmarshal(jsonEvent(event), in.Interface()); err != nil {
		return reflect.Value{}, &eventError{err}
	}
	return in.Elem(), nil
}

// encode gives the result's bytes and, when they are not JSON, their content type.
func encode(result any) ([]byte, string, error) {
	if raw, ok := result.([]byte); ok {
		return raw, "application/octet-stream", nil
	}
	encoded, err := json.Marshal(result)
	if err != nil {
		return nil, "", &resultError{err}
	}
	return encoded, "", nil
}
