package nanogrid

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// Kinds of frames between the worker and this program.
const (
	kindInvoke     = 2
	kindLoaded     = 17
	kindLoadFailed = 18
	kindResult     = 19
	kindError      = 20
	kindProgress   = 21
	kindPartial    = 22

	headerSize = 13
	maxFrame   = 1 << 30
)

var errBadFrame = errors.New("nanogrid: the worker sent a malformed frame")

// channel is the socket to the worker. Sends may come from any goroutine.
type channel struct {
	file *os.File
	mu   sync.Mutex
	head [headerSize]byte
}

// receive returns the next frame; io.EOF when the worker closed the socket.
func (c *channel) receive() (kind byte, meta, payload []byte, err error) {
	if _, err = io.ReadFull(c.file, c.head[:]); err != nil {
		return 0, nil, nil, err
	}
	size := binary.BigEndian.Uint32(c.head[:4])
	metaSize := binary.BigEndian.Uint32(c.head[9:])
	if size < 9 || size > maxFrame || metaSize > size-9 {
		return 0, nil, nil, errBadFrame
	}
	body := make([]byte, size-9)
	if _, err = io.ReadFull(c.file, body); err != nil {
		return 0, nil, nil, err
	}
	return c.head[4], body[:metaSize:metaSize], body[metaSize:], nil
}

// send writes one frame in a single system call.
func (c *channel) send(kind byte, meta any, payload []byte) error {
	encoded, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	if len(encoded)+len(payload)+9 > maxFrame {
		return errors.New("nanogrid: a frame may have at most 1 GiB")
	}
	frame := make([]byte, 0, headerSize+len(encoded)+len(payload))
	frame = binary.BigEndian.AppendUint32(frame, uint32(9+len(encoded)+len(payload)))
	frame = append(frame, kind, 0, 0, 0, 0)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(encoded)))
	frame = append(frame, encoded...)
	frame = append(frame, payload...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.file.Write(frame)
	return err
}

// watch ends the program when the worker is gone, even while a handler is at work. It sleeps in the
// kernel until then, so it costs the calls nothing.
func watch(fd uintptr) {
	const hangUp = 0x2000 // POLLRDHUP
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: hangUp}
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, 0, 0, 0, 0)
		if errno != 0 && errno != syscall.EINTR {
			return
		}
		if errno == 0 && n > 0 {
			os.Exit(0)
		}
	}
}
